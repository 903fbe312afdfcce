"""Factors W = U Vᵀ whose ranks stand in order of importance: pure functions.

    importance of rank b   ‖U_{:,b:}‖_F ‖V_{:,b:}‖_F  (hierarchical)      or  ‖u_b‖ ‖v_b‖  (plain)
    group lasso            Σ_b ‖U_{:,b:}‖_F + ‖V_{:,b:}‖_F                or  Σ_b ‖u_b‖ + ‖v_b‖

Source: Horváth et al., 2024, arXiv:2308.14929.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eckart.errors import InputError


class Factors(NamedTuple):
    """Vᵀ and U."""

    first: Float[Tensor, "r in"]
    second: Float[Tensor, "out r"]


def balanced_factors(weight: Float[Tensor, "out in"], r: int) -> Factors:
    """√S_r V_rᵀ and U_r √S_r of the r leading singular triples, in float64.

    Raises:
        InputError: the weight is not finite.
    """
    if not bool(weight.isfinite().all()):
        raise InputError("the layer's weight holds NaN or infinity: start from a finite one")
    u, s, vh = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    root = s[:r].sqrt()
    return Factors(root[:, None] * vh[:r], u[:, :r] * root)


def rank_norms(
    first: Float[Tensor, "r in"],
    second: Float[Tensor, "out r"],
    kept: Bool[Tensor, " r"],
    hierarchical: bool,
) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
    """Norms of each rank's row of Vᵀ and column of U, or of these and all that come after it; ranks that are not kept
    count nowhere. In float32 or wider; the gradient of a norm that is zero is zero.
    """
    wide = torch.promote_types(first.dtype, torch.float32)
    return (
        _norms(first.to(wide).square().sum(1), kept, hierarchical),
        _norms(second.to(wide).square().sum(0), kept, hierarchical),
    )


def _norms(squares: Float[Tensor, " r"], kept: Bool[Tensor, " r"], hierarchical: bool) -> Float[Tensor, " r"]:
    squares = squares * kept
    if hierarchical:
        squares = squares.flip(0).cumsum(0).flip(0)
    there = kept & (squares != 0)  # NaN stays NaN
    return torch.where(there, torch.where(there, squares, 1.0).sqrt(), 0.0)


def importance_order(importances: Sequence[Float[Tensor, " _"]]) -> list[int]:
    """Which layer gives up its last rank next, over and over, until each has one left: always the one whose last rank
    is least important.

    Args:
        importances: of the ranks of each layer, none larger than the one before it.

    Returns:
        Indices of layers, Σ (r_i − 1) of them.
    """
    offers = [
        (float(value), layer, -rank)
        for layer, values in enumerate(importances)
        for rank, value in enumerate(values.tolist())
        if rank > 0
    ]
    return [layer for _, layer, _ in sorted(offers, key=lambda offer: (offer[0], offer[2], offer[1]))]
