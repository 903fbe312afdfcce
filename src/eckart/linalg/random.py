"""Random numbers that are a function of (key, index): no state, no order, the same bits on every device.

A torch generator gives other numbers on another device, for another chunk size of normals, or in another release; a
counter-based one does not, so a matrix of it may be forgotten and made again. Each index is hashed to 32 bits (two
rounds of xor-shift and multiply), which give two 16-bit numbers.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

Law = Literal["uniform", "normal"]
_BLOCK = 8
"""Basis matrices whose weighted sum is formed at once: fixed, so that the chunk size cannot change a rounding."""


def counter_key(*tag: object) -> int:
    """A 63-bit key that depends on nothing but these values."""
    digest = hashlib.sha256("\x1f".join(map(str, tag)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeded_generator(*key: object) -> torch.Generator:
    """A CPU generator keyed by any values: the same key gives the same stream in any order of construction."""
    return torch.Generator().manual_seed(counter_key(*key))


def random_words(
    key: int, count: int, *, start: int = 0, device: torch.device | None = None
) -> Int[Tensor, " count"]:
    """The 32-bit words ``start … start + count − 1`` of a key's stream, as int32.

    Args:
        key: 63 bits, as `counter_key` gives.
        count: how many.
        start: index of the first.
        device: where to make them; the values do not depend on it.
    """
    words = torch.arange(count, dtype=torch.int32, device=device).add_(_wrap(start + key))
    shifted = torch.empty_like(words)

    def fold(bits: int) -> None:
        torch.bitwise_right_shift(words, bits, out=shifted)
        words.bitwise_xor_(shifted.bitwise_and_((1 << (32 - bits)) - 1))

    fold(16)
    words.mul_(_wrap(0x7FEB352D)).add_(_wrap(key >> 31))
    fold(15)
    words.mul_(_wrap(0x846CA68B))
    fold(16)
    return words


def _wrap(value: int) -> int:
    """The low 32 bits, read as a signed number."""
    return (value + 2**31) % 2**32 - 2**31


def random_matrix(
    key: int,
    rows: int,
    columns: int,
    law: Law = "uniform",
    *,
    first: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Float[Tensor, "rows columns"]:
    """Rows ``first … first + rows − 1`` of an endless random matrix.

    Args:
        key: names the matrix.
        rows: how many rows.
        columns: length of a row.
        law: ``"uniform"`` on (−1, 1), at 2¹⁶ equally spaced points, or ``"normal"`` (its quantiles), variance 1.
        first: index of the first row.
        dtype: float32 or float64.
        device: where to make it.
    """
    half = (columns + 1) // 2
    words = random_words(key, rows * half, start=first * half, device=device)
    values = words.view(torch.int16).view(rows, 2 * half)[:, :columns].to(dtype)
    values.add_(0.5).mul_(2.0**-15)
    return values.erfinv_().mul_(math.sqrt(2)) if law == "normal" else values


def permutation(key: int, n: int) -> Int[Tensor, " n"]:
    """A uniformly random order of 0 … n − 1."""
    return random_words(key, n).argsort(stable=True)


def default_chunk(size: int, device: torch.device) -> int:
    """How many matrices of ``size`` numbers to hold at once: what fits a CPU's cache, or fills an accelerator."""
    return max(1, 2 ** (17 if device.type == "cpu" else 24) // size)


@torch.library.custom_op(
    "eckart::mix_random_basis",
    mutates_args=(),
    schema="(Tensor coefficients, SymInt key, SymInt size, str law, SymInt chunk) -> Tensor",
)
def mix_random_basis(coefficients: Tensor, key: int, size: int, law: str, chunk: int) -> Tensor:
    """Σᵢ cᵢ Mᵢ over random rows Mᵢ that are made, used and forgotten: ``c @ random_matrix(key, len(c), size, law)``.

    Differentiable in ``coefficients``; the backward pass makes the rows again, and nothing is kept for it. On a CPU
    the result has the same bits for every ``chunk``.

    Args:
        coefficients: c ``(k,)``.
        key: names the basis.
        size: numbers in one basis matrix.
        law: as `random_matrix`.
        chunk: rows in memory at once, rounded up to a multiple of 8; 0 takes `default_chunk`.

    Returns:
        The sum ``(size,)`` in float32, or float64 where the coefficients are.
    """
    dtype = torch.promote_types(coefficients.dtype, torch.float32)
    k = coefficients.numel()
    padded = torch.zeros(-(-k // _BLOCK) * _BLOCK, dtype=dtype, device=coefficients.device)
    padded[:k] = coefficients
    total = torch.zeros(size, dtype=dtype, device=coefficients.device)
    for first, rows in _chunks(k, size, chunk, coefficients.device):
        basis = random_matrix(
            key, rows, size, cast(Law, law), first=first, dtype=dtype, device=coefficients.device
        )
        weighted = basis.mul_(padded[first : first + rows, None])
        for partial in weighted.view(-1, _BLOCK, size).sum(1).unbind():
            total.add_(partial)
    return total


@torch.library.custom_op(
    "eckart::dot_random_basis",
    mutates_args=(),
    schema="(Tensor g, SymInt key, SymInt k, str law, SymInt chunk) -> Tensor",
)
def dot_random_basis(g: Tensor, key: int, k: int, law: str, chunk: int) -> Tensor:
    """⟨g, Mᵢ⟩ for i < k: ``random_matrix(key, k, len(g), law) @ g``, the transpose of `mix_random_basis`."""
    g = g.to(torch.promote_types(g.dtype, torch.float32))
    products = []
    for first, rows in _chunks(k, g.numel(), chunk, g.device):
        basis = random_matrix(
            key, rows, g.numel(), cast(Law, law), first=first, dtype=g.dtype, device=g.device
        )
        products.append(basis.mul_(g).sum(1))
    return torch.cat(products)[:k]


def _chunks(k: int, size: int, chunk: int, device: torch.device) -> list[tuple[int, int]]:
    """(first, rows) of every chunk that covers k rows, in whole blocks."""
    step = -(-(chunk or default_chunk(size, device)) // _BLOCK) * _BLOCK
    end = -(-k // _BLOCK) * _BLOCK
    return [(first, min(step, end - first)) for first in range(0, end, step)]


@mix_random_basis.register_fake
def _(coefficients: Tensor, key: int, size: int, law: str, chunk: int) -> Tensor:
    return coefficients.new_empty(size, dtype=torch.promote_types(coefficients.dtype, torch.float32))


@dot_random_basis.register_fake
def _(g: Tensor, key: int, k: int, law: str, chunk: int) -> Tensor:
    return g.new_empty(k, dtype=torch.promote_types(g.dtype, torch.float32))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    coefficients, ctx.key, _, ctx.law, ctx.chunk = inputs
    ctx.k, ctx.dtype = coefficients.numel(), coefficients.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return dot_random_basis(grad, ctx.key, ctx.k, ctx.law, ctx.chunk).to(ctx.dtype), None, None, None, None


mix_random_basis.register_autograd(_backward, setup_context=_remember)
