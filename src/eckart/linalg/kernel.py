"""Matrices whose entries are kernels of row pairs, and what is left of them after a threshold: pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Sparsify = Literal["square", "soft", "hard"]


def piecewise_kernel(
    outer: Float[Tensor, "p m q"], inner: Float[Tensor, "p n q"], coeff: Sequence[float], norm: float = 2.0
) -> Float[Tensor, "m n"]:
    """K[i, j] = Σ_p coeff_p ‖outer_p[i] − inner_p[j]‖_norm.

    Args:
        outer: one factor for each piece, with a row for each output.
        inner: one factor for each piece, with a row for each input.
        coeff: the weight of each piece.
        norm: order of the norm.

    Source: Shen et al., 2024, arXiv:2411.01800.
    """
    kernel = outer.new_zeros(outer.shape[1], inner.shape[1])
    for c, a, b in zip(coeff, outer, inner, strict=True):
        kernel = kernel.add_(_distance(a, b, norm), alpha=c)
    return kernel


def threshold(magnitude: Float[Tensor, "m n"], sparsity: float, how: Sparsify) -> Float[Tensor, ""]:
    """The size up to which entries are set to zero.

    "square" and "hard": the quantile of the n sizes at ``sparsity``, linear between neighbours as `torch.quantile`
    has it, for any n. "soft": the ⌈sparsity · n⌉-th smallest size, at least the first.

    Args:
        magnitude: the sizes, in float32 or float64.
        sparsity: share of entries set to zero, in [0, 1].
    """
    sizes = magnitude.flatten()
    if how == "soft":
        return sizes.kthvalue(max(1, math.ceil(sparsity * sizes.numel()))).values
    position = sparsity * (sizes.numel() - 1)
    rank = int(position)
    below = sizes.kthvalue(rank + 1).values
    if position == rank:
        return below
    next_larger = torch.where(sizes > below, sizes, torch.inf).amin()
    above = torch.where((sizes <= below).sum() > rank + 1, below, next_larger)
    return below.lerp(above, position - rank)


def multiplier(magnitude: Tensor, bound: Tensor, how: Sparsify) -> Tensor:
    """What an entry of that size is multiplied by: |K| ("square"), |K| − t ("soft") or 1 ("hard") above t, else 0."""
    if how == "soft":
        return (magnitude - bound).relu()
    kept = magnitude > bound
    return magnitude * kept if how == "square" else kept.to(magnitude)


class _SparseKernel(torch.autograd.Function):
    """K ⊙ m(|K|), keeping only the factors and the threshold for a backward pass that builds K again."""

    @staticmethod
    def forward(
        ctx: Any,
        outer: Tensor,
        inner: Tensor,
        coeff: Sequence[float],
        sparsity: float,
        how: Sparsify,
        detach: bool,
        norm: float,
    ) -> Tensor:
        kernel = piecewise_kernel(outer, inner, coeff, norm)
        magnitude = kernel.abs()
        bound = threshold(magnitude, sparsity, how) if sparsity else magnitude.new_zeros(())
        ctx.save_for_backward(outer, inner, bound)
        ctx.options = coeff, sparsity, how, detach, norm
        return kernel * multiplier(magnitude, bound, how) if sparsity else kernel

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        outer, inner, bound = ctx.saved_tensors
        coeff, sparsity, how, detach, norm = ctx.options
        (slope,) = gradients
        if sparsity:
            magnitude = piecewise_kernel(outer, inner, coeff, norm).abs()
            factor = multiplier(magnitude, bound, how)
            if not detach and how != "hard":
                factor = factor + magnitude * (magnitude > bound)
            slope = slope * factor
        d_outer, d_inner = [], []
        for c, a, b in zip(coeff, outer, inner, strict=True):
            weight, distance = c * slope, _distance(a, b, norm)
            d_outer.append(_distance_gradient(weight, a, b, norm, distance))
            d_inner.append(_distance_gradient(weight.t(), b, a, norm, distance.t()))
        return torch.stack(d_outer), torch.stack(d_inner), None, None, None, None, None


def sparse_piecewise_kernel(
    outer: Float[Tensor, "p m q"],
    inner: Float[Tensor, "p n q"],
    coeff: Sequence[float],
    sparsity: float,
    how: Sparsify = "square",
    *,
    detach: bool = True,
    norm: float = 2.0,
) -> Float[Tensor, "m n"]:
    """`piecewise_kernel` with the smallest entries set to zero, K ⊙ m(|K|) with m as in `multiplier`.

    Nothing of size m × n is kept for the backward pass. No gradient goes through the threshold; where two rows
    coincide the gradient of their distance is 0.

    Args:
        outer: one factor for each piece, with a row for each output, in float32 or float64.
        inner: one factor for each piece, with a row for each input.
        coeff: the weight of each piece.
        sparsity: share of entries set to zero, in [0, 1); at 0 the kernel itself is returned, m = 1.
        how: what becomes of the others.
        detach: hold m constant in the backward pass, as the authors' code does, instead of differentiating it.
        norm: order of the norm.
    """
    delta: Tensor = _SparseKernel.apply(outer, inner, coeff, sparsity, how, detach, norm)  # type: ignore[no-untyped-call]
    return delta


def _distance(a: Float[Tensor, "m q"], b: Float[Tensor, "n q"], norm: float) -> Float[Tensor, "m n"]:
    return torch.cdist(a, b, p=norm, compute_mode="donot_use_mm_for_euclid_dist")


def _distance_gradient(weight: Tensor, a: Tensor, b: Tensor, norm: float, distance: Tensor) -> Tensor:
    """Σ_j weight[i, j] ∂‖a_i − b_j‖/∂a_i; zero for a pair of equal rows."""
    weight, a, b, distance = (t.contiguous() for t in (weight, a, b, distance))
    gradient: Tensor = torch.ops.aten._cdist_backward(weight, a, b, norm, distance)
    return gradient
