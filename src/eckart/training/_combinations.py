"""Which rule suits which adapter, asked of the code of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import nn

from eckart.adapters import ADAPTERS, Adapter, AdapterConfig, adapt, walk
from eckart.errors import InputError
from eckart.training._base import RULES, Rule

_COMMON = {option.name for option in fields(AdapterConfig)}


@dataclass(frozen=True)
class Combination:
    """A rule and an adapter.

    Attributes:
        rule: its slug.
        adapter: its slug.
        options: of the adapter, beside its defaults, with which the rule suits it.
        reason: why the rule suits it with no option; empty where it does.
    """

    rule: str
    adapter: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


def combinations() -> list[Combination]:
    """Every rule with every adapter, by slug: whether `Rule.suits` the adapter with its default options, or with one
    other value of an option that has a few."""
    found = []
    for slug, config in sorted(ADAPTERS.items()):
        variants = [(options, made) for options in _variants(config) if (made := _made(slug, options))]
        for rule, kind in sorted(RULES.items()):
            suited = (options for options, adapter in variants if not kind.suits(adapter))
            options = next(suited, None)
            reason = kind.suits(variants[0][1]) if options is None else ""
            found.append(Combination(rule, slug, options or {}, reason))
    return found


def options_for(adapter: str, rules: Sequence[type[Rule]]) -> dict[str, Any]:
    """The options of an adapter, beside its defaults, with which rules suit it; none for a prompt, or where no one
    option will do.

    Args:
        adapter: its slug, or that of a prompt, which has none.
        rules: all of them.
    """
    for options in _variants(ADAPTERS[adapter]) if adapter in ADAPTERS else ():
        made = _made(adapter, options)
        if made is not None and not any(rule.suits(made) for rule in rules):
            return options
    return {}


def _variants(config: type[AdapterConfig]) -> Iterator[dict[str, Any]]:
    """The defaults, then each other value of each option that is a choice among words."""
    yield {}
    hints = get_type_hints(config)
    for option in fields(config):
        if option.name not in _COMMON and get_origin(hints[option.name]) is Literal:
            yield from (
                {option.name: value} for value in get_args(hints[option.name]) if value != option.default
            )


def _made(slug: str, options: dict[str, Any]) -> Adapter | None:
    """An adapter of a small layer; None where the option asks for another."""
    try:
        model = adapt(nn.Sequential(nn.Linear(16, 16)), slug, target_modules=["0"], **options)
    except InputError:
        return None
    return next(adapter for _, _, _, adapter in walk(model))
