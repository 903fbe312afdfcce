"""Every strategy by name, and one layer's aggregation by any of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from eckart.arguments import hint
from eckart.errors import InputError
from eckart.federated import fedavg, fedex_lora, fedit, ffa_lora, flexlora, flora_stacking, hetlora, lora_fair
from eckart.federated._registry import STRATEGIES, FederatedStrategy
from eckart.federated._sums import Aggregate, LayerSum

__all__ = ["METHODS", "STRATEGIES", "FederatedStrategy", "aggregate", "make_strategy"]

_FILES = (fedavg, fedex_lora, fedit, ffa_lora, flexlora, flora_stacking, hetlora, lora_fair)
"""Imported for their entries in the registry."""


def make_strategy(strategy: str, **options: Any) -> FederatedStrategy:
    """A strategy by name.

    Args:
        strategy: its slug, such as ``"lora-fair"``.
        options: its own options.

    Raises:
        InputError: an unknown strategy or option (names the nearest), or a value out of range.
    """
    slug = strategy.strip().lower().replace("_", "-")
    if slug not in STRATEGIES:
        raise InputError(f"unknown strategy {strategy!r}: {hint(slug, sorted(STRATEGIES))}")
    kind = STRATEGIES[slug]
    known = [field.name for field in dataclasses.fields(kind)]
    for name in options:
        if name not in known:
            raise InputError(f"{slug} has no option {name!r}: it has {', '.join(known) or 'none'}")
    return kind(**options)


def aggregate(
    strategy: str | FederatedStrategy,
    factors: Sequence[tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]],
    weights: Sequence[float],
    scalings: float | Sequence[float] = 1.0,
) -> Aggregate:
    """Aggregate one layer's factors: s B A + residual ≈ ΔW = Σ p_k s_k B_k A_k, p_k = n_k/Σn.

    Args:
        strategy: a strategy, or the slug of one with its default options.
        factors: lora_A (r_k, in) and lora_B (out, r_k) of each client.
        weights: n_k, examples of each client.
        scalings: s_k = α_k/r_k of each client, or one for all.

    Raises:
        InputError: unequal numbers of factors, weights and scalings; bad factors (see `LayerSum.add`); clients that
            the strategy cannot combine.
    """
    if isinstance(strategy, str):
        strategy = make_strategy(strategy)
    if isinstance(scalings, int | float):
        scalings = [float(scalings)] * len(factors)
    if not len(factors) == len(weights) == len(scalings):
        raise InputError(
            f"{len(factors)} factors, {len(weights)} weights and {len(scalings)} scalings: give one of each a client"
        )
    sums = LayerSum(strategy.stacks)
    for (a, b), weight, scaling in zip(factors, weights, scalings, strict=True):
        sums.add(a, b, float(weight), float(scaling))
    return strategy.finish(sums)


def _summary(kind: type[FederatedStrategy]) -> dict[str, str]:
    names = ("slug", "paper", "arxiv", "knob", "trains", "saves")
    first = (kind.__doc__ or "").strip().partition("\n")[0]
    facts = {name: getattr(kind, name) for name in names}
    return {"name": kind.title, "family": "federated", "summary": first, **facts}


METHODS: tuple[dict[str, str], ...] = tuple(_summary(kind) for _, kind in sorted(STRATEGIES.items()))
"""What `eckart.methods()` says of each strategy."""
