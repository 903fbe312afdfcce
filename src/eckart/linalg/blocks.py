"""A linear layer whose weight is multiplied by a small matrix for each block of its rows: pure functions."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_SHORT = 16
"""Small matrices are multiplied several at once up to so many columns: a product with fewer is slow."""


class BlockLinear(torch.autograd.Function):
    """``x (W + s ΔW)ᵀ + bias`` with ΔW_jc = W_jc B_j + B_j over the r × r blocks of W. Only x, W and the B are kept for
    the backward pass, which makes the sum again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "tokens in"],
        weight: Float[Tensor, "out in"],
        blocks: Float[Tensor, "n r r"],
        bias: Float[Tensor, " out"] | None,
        scaling: float,
    ) -> Float[Tensor, "tokens out"]:
        """The layer's output; W frozen."""
        ctx.save_for_backward(x, weight, blocks)
        ctx.scaling = scaling
        return nn.functional.linear(x, _changed(weight, blocks, scaling), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for x, the B and the bias."""
        (x, weight, blocks), (g,) = ctx.saved_tensors, gradients
        of_x = g @ _changed(weight, blocks, ctx.scaling) if ctx.needs_input_grad[0] else None
        slope, (n, r, _) = g.t() @ x, blocks.shape
        rows, slopes = _grouped(weight, n, r), _grouped(slope, n, r)
        several = rows.shape[2] // r
        products = torch.bmm(rows.mT, slopes).view(n, several, r, several, r)
        of_blocks = products.diagonal(dim1=1, dim2=3).sum(-1) + slope.view(n, r, -1, r).sum(2)
        of_bias = g.sum(0) if ctx.needs_input_grad[3] else None
        return of_x, None, ctx.scaling * of_blocks, of_bias, None


def _grouped(matrix: Float[Tensor, "out in"], n: int, r: int) -> Float[Tensor, "n m gr"]:
    """The numbers of each block of rows as rows of g r columns, g small blocks beside each other."""
    several = max(_SHORT // r, 1)
    return matrix.reshape(n, -1, several * r if matrix.shape[1] % (several * r) == 0 else r)


def _changed(
    weight: Float[Tensor, "out in"], blocks: Float[Tensor, "n r r"], scaling: float
) -> Float[Tensor, "out in"]:
    """W + s ΔW, as W_jc (I + s B_j) + s B_j."""
    n, r, _ = blocks.shape
    rows, scaled = _grouped(weight, n, r), scaling * blocks
    several = rows.shape[2] // r
    factor = blocks.new_zeros(n, several, r, several, r)
    factor.diagonal(dim1=1, dim2=3).copy_(scaled.unsqueeze(-1))
    factor = factor.view(n, several * r, several * r)
    factor.diagonal(dim1=1, dim2=2).add_(1)
    total = torch.bmm(rows, factor).view(n, r, -1, r).add_(scaled.unsqueeze(2))
    return total.view(weight.shape)
