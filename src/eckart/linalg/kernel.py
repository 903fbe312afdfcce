"""Matrices whose entries are kernels of row pairs, and what is left of them after a threshold: pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from eckart.linalg.random import default_chunk

Sparsify = Literal["square", "soft", "hard"]


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
        neighbours: Tensor = order_statistics(sizes, max(1, math.ceil(sparsity * sizes.numel())) - 1)
        return neighbours[0]
    position = sparsity * (sizes.numel() - 1)
    rank = int(position)
    below, above = order_statistics(sizes, rank).unbind()
    bound: Tensor = below if position == rank else below.lerp(above, position - rank)
    return bound


@torch.library.custom_op(
    "eckart::order_statistics", mutates_args=(), schema="(Tensor x, SymInt rank) -> Tensor"
)
def order_statistics(x: Tensor, rank: int) -> Tensor:
    """What would stand at ``rank`` and one place further if x were sorted; at the last rank its number twice.

    Args:
        x: ``(n,)`` in float32 or float64; NaN counts as the largest.
        rank: in [0, n).

    Returns:
        The two numbers, ``(2,)``.
    """
    last = rank == x.numel() - 1
    if x.device.type == "cpu":  # NumPy's selection is vectorised: a tenth of the time of kthvalue
        parted = np.partition(x.detach().numpy(), rank)
        return x.new_tensor([parted[rank], parted[rank] if last else np.fmin.reduce(parted[rank + 1 :])])
    below = x.kthvalue(rank + 1).values
    following = torch.where(x > below, x, torch.inf).amin()
    return torch.stack([below, torch.where((x <= below).sum() > rank + 1 - last, below, following)])


@order_statistics.register_fake
def _(x: Tensor, rank: int) -> Tensor:
    return x.new_empty(2)


def multiplier(magnitude: Tensor, bound: Tensor, how: Sparsify) -> Tensor:
    """What an entry of that size is multiplied by: |K| ("square"), |K| − t ("soft") or 1 ("hard") above t, else 0."""
    if how == "soft":
        return (magnitude - bound).relu()
    kept = torch.gt(magnitude.detach(), bound, out=torch.empty_like(magnitude.detach()))
    return magnitude * kept if how == "square" else kept


class _SparseKernel(torch.autograd.Function):
    """K ⊙ m(|K|), keeping only the factors and the threshold for a backward pass that builds K again. Both passes go
    through K a few rows at a time, in a cache, and the backward pass holds nothing of the size of K."""

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
        kernel = outer.new_empty(outer.shape[1], inner.shape[1])
        for rows in _row_blocks(kernel.shape, kernel.device):
            kernel[rows] = _combine(coeff, _distances(outer[:, rows], inner, norm))
        bound = threshold(kernel.abs(), sparsity, how) if sparsity else kernel.new_zeros(())
        if sparsity:
            for rows in _row_blocks(kernel.shape, kernel.device):
                kernel[rows] *= multiplier(kernel[rows].abs(), bound, how)
        ctx.save_for_backward(outer, inner, bound)
        ctx.options = coeff, sparsity, how, detach, norm
        return kernel

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        outer, inner, bound = ctx.saved_tensors
        coeff, sparsity, how, detach, norm = ctx.options
        (slope,) = gradients
        d_outer, d_inner = torch.empty_like(outer), torch.zeros_like(inner)
        for rows in _row_blocks(slope.shape, slope.device):
            weight, apart = slope[rows], _distances(outer[:, rows], inner, norm)
            if sparsity:
                magnitude = _combine(coeff, apart).abs_()
                factor = multiplier(magnitude, bound, how)
                if not detach and how != "hard":
                    factor += magnitude * multiplier(magnitude, bound, "hard")
                weight = factor.mul_(weight)
            for piece, (c, a, b) in enumerate(zip(coeff, outer[:, rows], inner, strict=True)):
                moved = _distance_gradients(weight, a, b, norm, apart[piece])
                torch.mul(moved[0], c, out=d_outer[piece, rows])
                d_inner[piece].add_(moved[1], alpha=c)
        return d_outer, d_inner, None, None, None, None, None


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
    """K[i, j] = Σ_p coeff_p ‖outer_p[i] − inner_p[j]‖_norm with the smallest entries set to zero, K ⊙ m(|K|), m as in
    `multiplier`.

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

    Source: Shen et al., 2024, arXiv:2411.01800.
    """
    delta: Tensor = _SparseKernel.apply(outer, inner, coeff, sparsity, how, detach, norm)  # type: ignore[no-untyped-call]
    return delta


def _row_blocks(shape: Sequence[int], device: torch.device) -> Iterator[slice]:
    """Rows of a matrix, a few at a time: a quarter of what fits a cache, as some four matrices are at work."""
    step = max(1, default_chunk(2 * shape[1], device))
    return (slice(first, first + step) for first in range(0, shape[0], step))


def _combine(coeff: Sequence[float], apart: Sequence[Tensor]) -> Tensor:
    """Σ_p coeff_p apart_p."""
    total = coeff[0] * apart[0]
    for c, distance in zip(coeff[1:], apart[1:], strict=True):
        total.add_(distance, alpha=c)
    return total


def _distances(outer: Float[Tensor, "p m q"], inner: Float[Tensor, "p n q"], norm: float) -> list[Tensor]:
    """‖outer_p[i] − inner_p[j]‖ for each p."""
    if outer.shape[2] == 1:
        return [(a - b.t()).abs_() for a, b in zip(outer, inner, strict=True)]
    mode = "donot_use_mm_for_euclid_dist"
    return [torch.cdist(a, b, p=norm, compute_mode=mode) for a, b in zip(outer, inner, strict=True)]


def _distance_gradients(
    weight: Float[Tensor, "m n"],
    a: Float[Tensor, "m q"],
    b: Float[Tensor, "n q"],
    norm: float,
    distance: Float[Tensor, "m n"],
) -> tuple[Float[Tensor, "m q"], Float[Tensor, "n q"]]:
    """Σ_j weight[i, j] ∂‖a_i − b_j‖/∂a_i and Σ_i weight[i, j] ∂‖a_i − b_j‖/∂b_j; zero for a pair of equal rows."""
    if a.shape[1] == 1:
        signed = (a - b.t()).sign_().mul_(weight)
        return signed.sum(1, keepdim=True), signed.sum(0).neg_().unsqueeze(1)
    if norm == 2:
        least = distance.new_full((), torch.finfo(distance.dtype).tiny)
        unit = (weight * distance).div_(torch.addcmul(least, distance, distance))
        a_t, b_t = (
            F.pad(t.t(), (0, 0, 0, 1), value=1.0) for t in (a, b)
        )  # long rows: the fast shape of a product
        of_a, of_b = b_t @ unit.t(), a_t @ unit
        return (a_t * of_a[-1] - of_a)[:-1].t(), (b_t * of_b[-1] - of_b)[:-1].t()
    weight, a, b, distance = (t.contiguous() for t in (weight, a, b, distance))
    turned = [t.t().contiguous() for t in (weight, distance)]
    gradient = torch.ops.aten._cdist_backward
    return gradient(weight, a, b, norm, distance), gradient(turned[0], b, a, norm, turned[1])
