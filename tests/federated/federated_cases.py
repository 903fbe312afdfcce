"""Clients' factors for tests of the federated room."""

from __future__ import annotations

import torch
from torch import Tensor

Factors = list[tuple[Tensor, Tensor]]
STRATEGY_SLUGS = (
    "fedavg",
    "fedex-lora",
    "fedit",
    "ffa-lora",
    "flexlora",
    "flora-stacking",
    "hetlora",
    "lora-fair",
)
EXACT = ("fedavg", "fedex-lora", "flora-stacking")


def clients(
    out: int = 9, inner: int = 14, ranks: tuple[int, ...] = (3, 3, 3, 3), seed: int = 0, spread: float = 0.5
) -> Factors:
    """Factors (A, B) of clients around a common pair, in float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    most = max(ranks)
    a, b = draw(most, inner), draw(out, most)
    return [(a[:r] + spread * draw(r, inner), b[:, :r] + spread * draw(out, r)) for r in ranks]


def mean_product(factors: Factors, weights: list[float], scalings: list[float] | float = 1.0) -> Tensor:
    """ΔW = Σ p_k s_k B_k A_k, densely."""
    scales = [scalings] * len(factors) if isinstance(scalings, float) else scalings
    whole = sum(weights)
    return sum(w / whole * s * b @ a for (a, b), w, s in zip(factors, weights, scales, strict=True))  # type: ignore[return-value]


def same_a(factors: Factors) -> Factors:
    """The same factors under the first client's A."""
    return [(factors[0][0], b) for _, b in factors]
