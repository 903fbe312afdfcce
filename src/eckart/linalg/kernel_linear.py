"""A linear layer whose weight is a frozen matrix and a sparsified kernel of row pairs, in one pass forward and back."""

from __future__ import annotations

from collections.abc import Sequence
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

ROWS = 256
"""Rows of the weight in one product of the backward pass."""


class KernelForm(NamedTuple):
    """What `sparse_piecewise_kernel` takes beside its factors."""

    coeff: Sequence[float]
    sparsity: float
    how: Sparsify
    detach: bool = True
    norm: float = 2.0


def kernel_linear(
    x: Float[Tensor, "t n"],
    weight: Float[Tensor, "m n"],
    bias: Float[Tensor, " m"] | None,
    outer: Float[Tensor, "p m q"],
    inner: Float[Tensor, "p n q"],
    form: KernelForm,
    scaling: float = 1.0,
    softmax: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Float[Tensor, "t m"]:
    """``x (weight + scaling · K ⊙ m(|K|))ᵀ + bias`` with K as of `sparse_piecewise_kernel` or, given (α, β, γ), with
    α softmax₀(K/γ) + β added to it before anything is set to zero.

    K is built once in each pass. Kept for the backward pass are the inputs, the threshold and the sums of the softmax;
    the backward pass holds `ROWS` rows of matrices of the weight's size, or one such matrix with the softmax. The
    weight has no gradient.

    Args:
        x: the layer's input.
        weight: the frozen matrix.
        bias: the layer's, or None.
        outer: one factor for each piece, with a row for each output, in the dtype of x.
        inner: one factor for each piece, with a row for each input.
        form: the kernel.
        scaling: of what is added to the weight.
        softmax: α, β and γ, of one number each.
    """
    extra = softmax or (None, None, None)
    y: Tensor = _KernelLinear.apply(x, weight, bias, outer, inner, *extra, form, scaling)  # type: ignore[no-untyped-call]
    return y


class _KernelLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        outer: Tensor,
        inner: Tensor,
        alpha: Tensor | None,
        beta: Tensor | None,
        gamma: Tensor | None,
        form: KernelForm,
        scaling: float,
    ) -> Tensor:
        total, softmax = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device), None
        blocks = list(_row_blocks(total.shape, total.device))
        for rows in blocks:
            total[rows] = _combine(form.coeff, _distances(outer[:, rows], inner, form.norm))
        if alpha is not None and beta is not None and gamma is not None:
            softmax = _Softmax(alpha, beta, gamma, *_softmax_sums(total, blocks, gamma))
            for rows in blocks:
                total[rows] = softmax.kernel(total[rows], softmax.share(total[rows]))
        sparse = bool(form.sparsity) or softmax is not None
        bound = threshold(total.abs(), form.sparsity, form.how) if sparse else None
        for rows in blocks:
            part = total[rows]
            if bound is not None:
                part *= multiplier(part.abs(), bound, form.how)
            torch.add(weight[rows], part, alpha=scaling, out=part)
        ctx.save_for_backward(x, weight, outer, inner, bound, *(softmax or ()))
        ctx.form, ctx.scaling = form, scaling
        return x @ total.t() if bias is None else torch.addmm(bias, x, total.t())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        x, weight, outer, inner, bound, *rest = ctx.saved_tensors
        softmax, form = _Softmax(*rest) if rest else None, ctx.form
        d_outer, d_inner = torch.empty_like(outer), torch.zeros_like(inner)
        d_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        numbers: tuple[Tensor | None, ...] = (None, None, None)
        step = ROWS if softmax is None else len(weight)
        for first in range(0, len(weight), step):
            last = min(first + step, len(weight))
            slope, whole = g[:, first:last].t() @ x, weight[first:last].clone()
            fine = list(_row_blocks(slope.shape, slope.device))
            sums = slope.new_zeros(1 + (softmax is not None), slope.shape[1])
            for part in fine:
                a = outer[:, first:last][:, part]
                apart = _distances(a, inner, form.norm)
                kernel = _combine(form.coeff, apart)
                if softmax is not None:
                    share = softmax.share(kernel)
                    kernel = softmax.kernel(kernel, share)
                _through_multiplier(slope[part], whole[part], kernel, bound, form, ctx.scaling)
                if softmax is None:
                    _to_factors(slope[part], a, inner, apart, form, d_outer[:, first:last][:, part], d_inner)
                else:
                    sums[0] += slope[part].sum(0)
                    sums[1] += (share.mul_(slope[part])).sum(0)
            if d_x is not None:
                d_x.addmm_(g[:, first:last], whole)
        if softmax is not None:
            of_gamma = slope.new_zeros(())
            for part in fine:
                apart = _distances(outer[:, part], inner, form.norm)
                kernel = _combine(form.coeff, apart)
                change = (
                    (slope[part] - sums[1]).mul_(softmax.share(kernel)).mul_(softmax.alpha / softmax.gamma)
                )
                of_gamma -= torch.dot(change.flatten(), kernel.flatten())
                change += slope[part]
                _to_factors(change, outer[:, part], inner, apart, form, d_outer[:, part], d_inner)
            numbers = tuple(
                n.expand_as(softmax.alpha) for n in (sums[1].sum(), sums[0].sum(), of_gamma / softmax.gamma)
            )
        d_bias = g.sum(0) if ctx.needs_input_grad[2] else None
        return d_x, None, d_bias, d_outer, d_inner, *numbers, None, None


class _Softmax(NamedTuple):
    """α softmax₀(D/γ) + β: its numbers, and of each column the largest D/γ and the inverse of the sum of exponentials
    above it."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    largest: Tensor
    inverse: Tensor

    def share(self, distance: Tensor) -> Tensor:
        """The softmax."""
        return (distance / self.gamma).sub_(self.largest).exp_().mul_(self.inverse)

    def kernel(self, distance: Tensor, share: Tensor) -> Tensor:
        """D + α softmax + β."""
        return torch.addcmul(distance, share, self.alpha).add_(self.beta)


def _softmax_sums(distance: Tensor, blocks: Sequence[slice], gamma: Tensor) -> tuple[Tensor, Tensor]:
    """`_Softmax.largest` and `_Softmax.inverse`."""
    largest = torch.stack([(distance[rows] / gamma).amax(0) for rows in blocks]).amax(0)
    total = torch.zeros_like(largest)
    for rows in blocks:
        total += (distance[rows] / gamma).sub_(largest).exp_().sum(0)
    return largest, total.reciprocal_()


def _through_multiplier(
    slope: Tensor, whole: Tensor, kernel: Tensor, bound: Tensor | None, form: KernelForm, scaling: float
) -> None:
    """Add scaling · K m(|K|) to ``whole``, and turn ``slope``, the gradient for it, into that for K."""
    if bound is None:
        whole.add_(kernel, alpha=scaling)
        slope.mul_(scaling)
        return
    size = kernel.abs()
    factor = multiplier(size, bound, form.how)
    whole.addcmul_(kernel, factor, value=scaling)
    if not form.detach and form.how != "hard":
        factor += size * multiplier(size, bound, "hard")
    slope.mul_(factor)
    if scaling != 1:
        slope.mul_(scaling)


def _to_factors(
    slope: Tensor,
    a: Tensor,
    inner: Tensor,
    apart: Sequence[Tensor],
    form: KernelForm,
    d_outer: Tensor,
    d_inner: Tensor,
) -> None:
    """From the gradient for some rows of K to those for the factors: ``d_outer`` is filled, ``d_inner`` added to."""
    for piece, c in enumerate(form.coeff):
        of_a, of_b = _distance_gradients(slope, a[piece], inner[piece], form.norm, apart[piece])
        torch.mul(of_a, c, out=d_outer[piece])
        d_inner[piece].add_(of_b, alpha=c)
