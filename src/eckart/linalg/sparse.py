"""Sparse matrices of fixed support, and products with a low-rank plus sparse one: pure functions.

A support is the flat row-major positions i · in + j of the entries of S (out, in), rising and distinct, as int32.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eckart.linalg.random import random_words

_ROWS = 64
"""Rows that `balanced_support` draws at once."""


def random_support(key: int, rows: int, columns: int, count: int) -> Int[Tensor, " count"]:
    """Positions drawn uniformly without replacement, the same for a key on every machine.

    Memory is of the order of the smaller of ``count`` and what it leaves out.

    Args:
        key: 63 bits, as `eckart.linalg.random.counter_key` gives.
        rows, columns: of the matrix.
        count: how many of its entries.
    """
    size = rows * columns
    if 2 * count > size:
        left_out = random_support(key, rows, columns, size - count).long()
        kept = torch.ones(size, dtype=torch.bool).index_fill_(0, left_out, False)
        return kept.nonzero().squeeze(1).to(torch.int32)
    found = torch.empty(0, dtype=torch.int64)
    start = 0
    while len(found) < count:
        more = count - len(found) + 64
        found = torch.cat([found, _uniform(key, more, size, start)]).sort().values
        found = found[torch.cat([found.new_ones(1), found.diff()]) > 0]
        start += more
    spare = _uniform(key ^ 1, len(found), 2**32, 0).argsort(stable=True)[count:]
    kept = torch.ones(len(found), dtype=torch.bool).index_fill_(0, spare, False)
    return found[kept].to(torch.int32)


def balanced_support(key: int, rows: int, columns: int, count: int) -> Int[Tensor, " count"]:
    """As `random_support`, with equally many entries in each row; the first rows have one more where it must be."""
    parts = []
    for first in range(0, rows, _ROWS):
        block = torch.arange(first, min(first + _ROWS, rows))
        words = _uniform(key, len(block) * columns, 2**32, first * columns).view(len(block), columns)
        rank = words.argsort(dim=1, stable=True).argsort(dim=1)
        chosen = rank < (count // rows + (block < count % rows))[:, None]
        parts.append(chosen.flatten().nonzero().squeeze(1) + first * columns)
    return torch.cat(parts).to(torch.int32)


def _uniform(key: int, count: int, below: int, start: int) -> Int[Tensor, " count"]:
    words = random_words(key, count, start=start).long() & 0xFFFFFFFF
    return (words * below) >> 32 if below < 2**31 else words


def csr(
    support: Int[Tensor, " nnz"], values: Float[Tensor, " nnz"], rows: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Where each row begins in the support (rows + 1), the columns (nnz) and the values of S."""
    starts = torch.arange(rows + 1, device=support.device) * columns
    return torch.searchsorted(support.long(), starts), support.long() % columns, values


@torch.library.custom_op(
    "eckart::sparse_product",
    mutates_args=(),
    schema="(Tensor x, Tensor support, Tensor values, SymInt out_features, SymInt in_features) -> Tensor",
)
def sparse_product(x: Tensor, support: Tensor, values: Tensor, out_features: int, in_features: int) -> Tensor:
    """x Sᵀ (n, out) of x (n, in); in float32 or wider, returned in x's type."""
    wide = torch.promote_types(x.dtype, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its sparse layouts a beta
        matrix = torch.sparse_csr_tensor(
            *csr(support, values.to(wide), out_features, in_features), (out_features, in_features)
        )
        return (matrix @ x.to(wide).mT).mT.to(x.dtype).contiguous()


@torch.library.custom_op(
    "eckart::sparse_product_transposed",
    mutates_args=(),
    schema="(Tensor g, Tensor support, Tensor values, SymInt out_features, SymInt in_features) -> Tensor",
)
def sparse_product_transposed(
    g: Tensor, support: Tensor, values: Tensor, out_features: int, in_features: int
) -> Tensor:
    """g S (n, in) of g (n, out); in float32 or wider, returned in g's type."""
    wide = torch.promote_types(g.dtype, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        matrix = torch.sparse_csc_tensor(
            *csr(support, values.to(wide), out_features, in_features), (in_features, out_features)
        )
        return (matrix @ g.to(wide).mT).mT.to(g.dtype).contiguous()


@torch.library.custom_op(
    "eckart::sampled_product", mutates_args=(), schema="(Tensor g, Tensor x, Tensor support) -> Tensor"
)
def sampled_product(g: Tensor, x: Tensor, support: Tensor) -> Tensor:
    """The entries of gᵀ x (out, in) on the support, (nnz), in float32 or wider; the rest is not computed."""
    wide = torch.promote_types(g.dtype, torch.float32)
    out_features, in_features = g.shape[1], x.shape[1]
    zeros = torch.zeros(len(support), dtype=wide, device=g.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        pattern = torch.sparse_csr_tensor(
            *csr(support, zeros, out_features, in_features), (out_features, in_features)
        )
        product = torch.sparse.sampled_addmm(pattern, g.to(wide).mT.contiguous(), x.to(wide), beta=0.0)
        sampled: Tensor = product.values().clone()
        return sampled


@sparse_product.register_fake
def _(x: Tensor, support: Tensor, values: Tensor, out_features: int, in_features: int) -> Tensor:
    return x.new_empty(x.shape[0], out_features)


@sparse_product_transposed.register_fake
def _(g: Tensor, support: Tensor, values: Tensor, out_features: int, in_features: int) -> Tensor:
    return g.new_empty(g.shape[0], in_features)


@sampled_product.register_fake
def _(g: Tensor, x: Tensor, support: Tensor) -> Tensor:
    return g.new_empty(support.shape[0], dtype=torch.promote_types(g.dtype, torch.float32))


def low_rank_plus_sparse(
    a: Float[Tensor, "r in"],
    b: Float[Tensor, "out r"],
    values: Float[Tensor, " nnz"],
    support: Tensor,
    scale: float = 1.0,
) -> Float[Tensor, "out in"]:
    """s B A + S as a dense matrix."""
    weight = (b @ a).mul_(scale)
    weight.view(-1).index_add_(0, support.long(), values.to(weight.dtype))
    return weight


class LowRankSparseLinear(torch.autograd.Function):
    """y = x (s B A + S)ᵀ; x, the factors and S's values are kept for the backward pass, nothing of out × in or n × r.

    With ``dense`` the matrix is formed for each pass and freed: 2 n·out·in + 2 r·out·in multiply–adds a product.
    Without, x goes through the factors and S: 2 n (r (in + out) + nnz).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "n in"],
        a: Float[Tensor, "r in"],
        b: Float[Tensor, "out r"],
        values: Float[Tensor, " nnz"],
        support: Int[Tensor, " nnz"],
        scale: float,
        dense: bool,
    ) -> Float[Tensor, "n out"]:
        """The product."""
        ctx.save_for_backward(x, a, b, values, support)
        ctx.scale, ctx.dense = scale, dense
        if dense:
            return x @ low_rank_plus_sparse(a, b, values, support, scale).mT
        y: Tensor = sparse_product(x, support, values, b.shape[0], a.shape[1])
        return y.addmm_(x @ a.mT, b.mT, alpha=scale)

    @staticmethod
    def backward(
        ctx: Any, g: Float[Tensor, "n out"]
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None, None, None]:
        """∂x = g W, ∂A = s Bᵀ gᵀ x, ∂B = s gᵀ x Aᵀ, ∂v = gᵀ x on the support."""
        x, a, b, values, support = ctx.saved_tensors
        grad_x, scale = None, ctx.scale
        if ctx.dense:
            if ctx.needs_input_grad[0]:
                grad_x = g @ low_rank_plus_sparse(a, b, values, support, scale)
            outer = g.mT @ x
            grad_values = outer.view(-1)[support.long()]
            grads = (b.mT @ outer).mul_(scale), (outer @ a.mT).mul_(scale), grad_values.to(values.dtype)
            return grad_x, *grads, None, None, None
        back = (g @ b).mul_(scale)
        if ctx.needs_input_grad[0]:
            grad_x = sparse_product_transposed(g, support, values, b.shape[0], a.shape[1])
            grad_x = grad_x.addmm_(back, a)
        grad_values = sampled_product(g, x, support).to(values.dtype)
        grad_b = (g.mT @ (x @ a.mT)).mul_(scale)
        return grad_x, back.mT @ x, grad_b, grad_values, None, None, None
