"""The Walsh–Hadamard transform, and the random projection that two of them make: pure functions on tensors."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eckart.errors import InputError


@torch.library.custom_op("eckart::hadamard", mutates_args=(), schema="(Tensor x) -> Tensor")
def hadamard(x: Tensor) -> Tensor:
    """H x with the unnormalised Hadamard matrix of Sylvester's order, in L log₂ L additions: H is symmetric, H H = L.

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
    rows = 1 << (size.bit_length() - 1) // 2
    grid = x.to(torch.promote_types(x.dtype, torch.float32), copy=True).view(rows, -1)
    grid = _butterflies(grid).t().contiguous()
    return _butterflies(grid).t().reshape(size)


def _butterflies(grid: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """H over the first dimension, in place: long rows stay contiguous whatever the stride of a pass."""
    n, m = grid.shape
    half = 1
    while half < n:
        upper, lower = grid.view(n // (2 * half), 2, half * m).unbind(1)
        difference = upper - lower
        upper.add_(lower)
        lower.copy_(difference)
        half *= 2
    return grid


@hadamard.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


def _backward(ctx: Any, gradient: Tensor) -> Tensor:
    transformed: Tensor = hadamard(gradient)
    return transformed.to(ctx.dtype)


def _remember(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.dtype = inputs[0].dtype


hadamard.register_autograd(_backward, setup_context=_remember)


def fastfood(
    theta: Float[Tensor, " d"],
    signs: Float[Tensor, " L"],
    order: Int[Tensor, " L"],
    gauss: Float[Tensor, " L"],
    size: int,
) -> Float[Tensor, " size"]:
    """P θ for a random matrix ``(size, d)`` that is never formed: the first entries of H G Π H B pad(θ) / (√size ‖G‖).

    The columns of P are of unit length where ``size = L``, else nearly.

    Args:
        theta: θ, at most L numbers.
        signs: B, the diagonal of ±1.
        order: Π, ``(Π x)[i] = x[order[i]]``.
        gauss: G, the normal diagonal.
        size: numbers of the result, at most L.

    Source: Le, Sarlós & Smola, 2013; as in Li et al., 2018, arXiv:1804.08838.
    """
    padded = torch.nn.functional.pad(theta, (0, signs.numel() - theta.numel()))
    mixed: Tensor = hadamard(signs * padded)
    moved: Tensor = hadamard(gauss * mixed[order])
    divisor: Tensor = size**0.5 * torch.linalg.vector_norm(gauss)
    return moved[:size] / divisor
