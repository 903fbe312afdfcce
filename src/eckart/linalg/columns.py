"""Which columns of a matrix its best low-rank approximation misses most: pure functions."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class LowRankColumns(NamedTuple):
    """W ≈ B A with A = Σ^½ Vᵀ and B = U Σ^½ of the r leading triples, and the columns that the rest weighs most in."""

    A: Float[Tensor, "r in"]
    B: Float[Tensor, "out r"]
    columns: Int[Tensor, " count"]
    residual: Float[Tensor, "out in"]


def low_rank_columns(
    weight: Float[Tensor, "out in"],
    r: int,
    count: int,
    *,
    norm: int = 2,
    triples: int | None = None,
    smallest: bool = False,
) -> LowRankColumns:
    """Split a matrix into its best approximation of rank r and the columns of largest residual, in float64.

    The residual Σ σ_k u_k v_kᵀ runs over the triples k > r: all of them, the first ``triples``, or the last.

    Args:
        weight: any real matrix without NaN or Inf.
        r: below min(out, in).
        count: columns to choose, at most in.
        norm: columns are chosen by their ℓ2 or ℓ1 norm in the residual.
        triples: how many triples the residual has; None for all.
        smallest: take them from the end of the spectrum.
    """
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    root = s[:r].sqrt()
    last = len(s)
    used = last - r if triples is None else min(triples, last - r)
    rest = slice(last - used, last) if smallest else slice(r, r + used)
    residual = (u[:, rest] * s[rest]) @ vh[rest]
    scores = torch.linalg.vector_norm(residual, norm, dim=0)
    columns = scores.topk(count).indices.sort().values
    return LowRankColumns(root[:, None] * vh[:r], u[:, :r] * root, columns, residual)


class LowRankColumnsLinear(torch.autograd.Function):
    """y = γ φ(x Aᵀ) Bᵀ + (1 − γ) x_I W_sᵀ, φ the identity or SiLU.

    Kept for the backward pass: x, the factors, and x Aᵀ (n, r); φ and the columns x_I are computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "n in"],
        a: Float[Tensor, "r in"],
        b: Float[Tensor, "out r"],
        kept: Float[Tensor, "out c"],
        columns: Int[Tensor, " c"],
        gamma: tuple[float, float],
        silu: bool,
    ) -> Float[Tensor, "n out"]:
        """The product; ``gamma`` holds the weights of the two parts."""
        h = x @ a.mT
        ctx.save_for_backward(x, a, b, kept, columns, h)
        ctx.gamma, ctx.silu = gamma, silu
        u = torch.nn.functional.silu(h) if silu else h
        y = gamma[0] * (u @ b.mT)
        return y.add_(x.index_select(1, columns.long()) @ kept.mT, alpha=gamma[1])

    @staticmethod
    def backward(
        ctx: Any, g: Float[Tensor, "n out"]
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None, None, None]:
        """∂u = γ g B, ∂h = ∂u ⊙ φ′(h), ∂x = ∂h A, and (1 − γ) g W_s more in the columns I."""
        x, a, b, kept, columns, h = ctx.saved_tensors
        low, high = ctx.gamma
        back = low * (g @ b)
        u = h
        if ctx.silu:
            gate = h.sigmoid()
            u = h * gate
            back = back * (gate * (1 + h * (1 - gate)))
        index = columns.long()
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (back @ a).index_add_(1, index, g @ kept, alpha=high)
        grad_kept = high * (g.mT @ x.index_select(1, index))
        return grad_x, back.mT @ x, low * (g.mT @ u), grad_kept, None, None, None
