"""The Walsh–Hadamard transform, and the random projection that two of them make: pure functions on tensors."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eckart.errors import InputError

_BITS = 6
"""A pass multiplies by a matrix of at most 2⁶ rows: as fast as memory where products are, with few passes."""
_TABLE = 2**12
"""Entries of a table that each of many others takes one of: in a cache, and few take the same in its gradient."""


@torch.library.custom_op("eckart::hadamard", mutates_args=(), schema="(Tensor x) -> Tensor")
def hadamard(x: Tensor) -> Tensor:
    """H x with the unnormalised Hadamard matrix of Sylvester's order, H_ab = H_a ⊗ H_b: products with small ones along
    the sides of a grid. H is symmetric and H H = L.

    Differentiable; H is its own transpose, so nothing is kept for the backward pass.

    Args:
        x: ``(L,)``, L a power of two.

    Returns:
        ``(L,)`` in float32, or float64 where x is.

    Raises:
        InputError: L is no power of two.
    """
    size = x.numel()
    if x.dim() != 1 or size == 0 or size & (size - 1):
        raise InputError(f"x has shape {tuple(x.shape)}: give a vector whose length is a power of two")
    grid = x.to(torch.promote_types(x.dtype, torch.float32), copy=size == 1)
    bits, columns = size.bit_length() - 1, 1
    passes = -(-bits // _BITS)
    with torch.autocast(x.device.type, enabled=False):
        for index in range(passes):
            n = 1 << (bits + index) // passes
            h = _matrix(n, grid)
            grid = grid.reshape(-1, n) @ h if columns == 1 else h @ grid.view(-1, n, columns)
            columns *= n
    return grid.reshape(size)


def _matrix(n: int, like: Tensor) -> Float[Tensor, "n n"]:
    """H itself."""
    h = like.new_ones(1, 1)
    while len(h) < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h


@hadamard.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


def _backward(ctx: Any, gradient: Tensor) -> Tensor:
    transformed: Tensor = hadamard(gradient)
    return transformed.to(ctx.dtype)


def _remember(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.dtype = inputs[0].dtype


hadamard.register_autograd(_backward, setup_context=_remember)


class _Taken(torch.autograd.Function):
    """table[order modulo its length, a power of two], keeping nothing of the order's length but the order."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        ctx.entries = len(table)
        return table.index_select(0, order & (len(table) - 1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (order,), (gradient,) = ctx.saved_tensors, gradients
        sums = gradient.new_zeros(ctx.entries)
        return sums.index_add_(0, order & (ctx.entries - 1), gradient), None


def fastfood(
    theta: Float[Tensor, " d"],
    signs: Float[Tensor, " d"],
    order: Int[Tensor, " L"],
    gauss: Float[Tensor, " L"],
    size: int,
) -> Float[Tensor, " size"]:
    """P θ for a random matrix ``(size, d)`` that is never formed: the first entries of H G Π H pad(B θ) / (√size ‖G‖).

    The columns of P are of unit length where ``size = L``, else nearly. The inner transform is that of 2^⌈log₂ d⌉
    numbers over and over, as H_L = H_a ⊗ H_b: Π takes its entries from a small table.

    Args:
        theta: θ, at most L numbers.
        signs: B, the diagonal of ±1 where θ meets it.
        order: Π, ``(Π x)[i] = x[order[i]]``.
        gauss: G, the normal diagonal.
        size: numbers of the result, at most L.

    Source: Le, Sarlós & Smola, 2013; as in Li et al., 2018, arXiv:1804.08838.
    """
    padded = 1 << (theta.numel() - 1).bit_length()
    repeats = max(min(_TABLE, order.numel()) // padded, 1)
    parts = torch.linalg.vector_norm(gauss.view(-1, repeats * padded), dim=1)
    divisor: Tensor = size**0.5 * torch.linalg.vector_norm(parts)
    mixed: Tensor = hadamard(torch.nn.functional.pad(signs * theta / divisor, (0, padded - theta.numel())))
    taken = _Taken.apply(mixed.repeat(repeats), order)  # type: ignore[no-untyped-call]
    moved: Tensor = hadamard(gauss * taken)
    return moved[:size]
