"""A sparse kernel of row pairs with a softmax over its rows, built a few rows at a time in both passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.linalg.kernel import (
    Sparsify,
    _combine,
    _distance_gradients,
    _distances,
    _row_blocks,
    multiplier,
    threshold,
)

NORM = 2.0


class _Rows(NamedTuple):
    """Some rows of the kernel as the backward pass makes them again, and what their gradient is multiplied by."""

    rows: slice
    distances: list[Tensor]
    distance: Tensor
    share: Tensor
    slope: Tensor


class _SoftmaxKernel(torch.autograd.Function):
    """K ⊙ m(|K|), keeping the factors, a number for each column and the threshold for a backward pass that builds K
    again, once for the sums over a column and once for the gradients. Nothing but K itself has its size."""

    @staticmethod
    def forward(
        ctx: Any,
        outer: Tensor,
        inner: Tensor,
        alpha: Tensor,
        beta: Tensor,
        gamma: Tensor,
        coeff: Sequence[float],
        sparsity: float,
        how: Sparsify,
        detach: bool,
    ) -> Tensor:
        kernel = outer.new_empty(outer.shape[1], inner.shape[1])
        blocks = list(_row_blocks(kernel.shape, kernel.device))
        largest = kernel.new_full((kernel.shape[1],), -torch.inf)
        for rows in blocks:
            kernel[rows] = _combine(coeff, _distances(outer[:, rows], inner, NORM))
            torch.maximum(largest, (kernel[rows] / gamma).amax(0), out=largest)
        total = torch.zeros_like(largest)
        for rows in blocks:
            total += (kernel[rows] / gamma).sub_(largest).exp_().sum(0)
        total = total.log_().add_(largest)
        for rows in blocks:
            kernel[rows] += _share(kernel[rows], gamma, total).mul_(alpha).add_(beta)
        bound = threshold(kernel.abs(), sparsity, how)
        for rows in blocks:
            kernel[rows] *= multiplier(kernel[rows].abs(), bound, how)
        ctx.save_for_backward(outer, inner, alpha, beta, gamma, total, bound)
        ctx.options = coeff, how, detach
        return kernel

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        outer, inner, alpha, _, gamma, total, _ = ctx.saved_tensors
        coeff = ctx.options[0]
        spread, d_beta, d_gamma = torch.zeros_like(total), torch.zeros_like(alpha), torch.zeros_like(gamma)
        for part in _again(ctx, gradients[0]):
            spread += (part.slope * part.share).sum(0)
            d_beta += part.slope.sum()
        d_outer, d_inner = torch.empty_like(outer), torch.zeros_like(inner)
        for part in _again(ctx, gradients[0]):
            change = (part.slope - spread).mul_(part.share).mul_(alpha / gamma)
            d_gamma -= part.distance.mul_(change).sum() / gamma
            weight = change.add_(part.slope)
            pieces = zip(coeff, outer[:, part.rows], inner, part.distances, strict=True)
            for piece, (c, a, b, distance) in enumerate(pieces):
                moved = _distance_gradients(weight, a, b, NORM, distance)
                torch.mul(moved[0], c, out=d_outer[piece, part.rows])
                d_inner[piece].add_(moved[1], alpha=c)
        return d_outer, d_inner, spread.sum().view_as(alpha), d_beta, d_gamma, None, None, None, None


def _share(distance: Tensor, gamma: Tensor, total: Tensor) -> Tensor:
    """The softmax of some rows, from the logarithm of each column's sum."""
    return (distance / gamma).sub_(total).exp_()


def _again(ctx: Any, gradient: Tensor) -> Iterator[_Rows]:
    outer, inner, alpha, beta, gamma, total, bound = ctx.saved_tensors
    coeff, how, detach = ctx.options
    for rows in _row_blocks(gradient.shape, gradient.device):
        distances = _distances(outer[:, rows], inner, NORM)
        distance = _combine(coeff, distances)
        share = _share(distance, gamma, total)
        magnitude = (share * alpha).add_(beta).add_(distance).abs_()  # the very numbers of the forward pass
        factor = multiplier(magnitude, bound, how)
        if not detach and how != "hard":
            factor += magnitude * multiplier(magnitude, bound, "hard")
        yield _Rows(rows, distances, distance, share, factor * gradient[rows])


def sparse_softmax_kernel(
    outer: Float[Tensor, "p m q"],
    inner: Float[Tensor, "p n q"],
    alpha: Float[Tensor, 1],
    beta: Float[Tensor, 1],
    gamma: Float[Tensor, 1],
    coeff: Sequence[float],
    sparsity: float,
    how: Sparsify = "square",
    *,
    detach: bool = True,
) -> Float[Tensor, "m n"]:
    """K = D + α softmax_i(D/γ) + β with D[i, j] = Σ_p coeff_p ‖outer_p[i] − inner_p[j]‖₂, the smallest entries set to
    zero: K ⊙ m(|K|), m as in `multiplier`.

    Nothing of size m × n is kept for the backward pass. No gradient goes through the threshold; where two rows
    coincide the gradient of their distance is 0.

    Args:
        outer: one factor for each piece, with a row for each output, in float32 or float64.
        inner: one factor for each piece, with a row for each input.
        alpha: the weight of the softmax over the outputs.
        beta: what is added everywhere.
        gamma: the softmax's temperature.
        coeff: the weight of each piece.
        sparsity: share of entries set to zero, in [0, 1); m acts at 0 too.
        how: what becomes of the others.
        detach: hold m constant in the backward pass, as the authors' code does, instead of differentiating it.

    Source: Shen et al., 2025, arXiv:2510.24037.
    """
    given = (outer, inner, alpha, beta, gamma, coeff, sparsity, how, detach)
    delta: Tensor = _SoftmaxKernel.apply(*given)  # type: ignore[no-untyped-call]
    return delta
