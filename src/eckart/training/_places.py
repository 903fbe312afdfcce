"""The place beside an adapter where a companion acts: one rule has it, from its beginning to its end.

A rule may put its companion in later, or for some steps only; another that took the place meanwhile would silence it.
"""

from __future__ import annotations

from eckart.errors import InputError
from eckart.training._base import Rule


def check_places(rule: Rule) -> None:
    """Refuse a rule beside another one that has companions on the same adapters.

    Raises:
        InputError: naming the layer and the other rule.
    """
    for name, layer, key, _ in rule.adapters:
        other = layer.owners.get(key, rule)
        if other is not rule:
            raise InputError(
                f"layer {name} has a companion already, of {getattr(other, 'slug', 'another rule')}, beside which "
                f"{rule.slug} cannot act: detach that first"
            )


def take_places(rule: Rule) -> None:
    """Keep other rules from the places that `check_places` found free."""
    for _, layer, key, _ in rule.adapters:
        layer.owners[key] = rule


def free_places(rule: Rule) -> None:
    """Give back the places of a rule, its companions gone."""
    for _, layer, key, _ in rule.adapters:
        if layer.owners.get(key) is rule:
            del layer.owners[key]
            layer.companions.pop(key, None)
