"""Random numbers that are a function of (key, index): no state, no order, the same bits on every device.

A torch generator gives other numbers on another device, for another chunk size of normals, or in another release; a
counter-based one does not, so a matrix of it may be forgotten and made again. Each index is hashed to 32 bits (two
rounds of xor-shift and multiply), which give two 16-bit numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Law = Literal["uniform", "normal"]
_SCALES: dict[Law, tuple[float, float]] = {"uniform": (2.0**-15, 0.5), "normal": (math.sqrt(2), 0.0)}
"""(a, b) by which a law's numbers are a (v + b) of the v in a product: 16-bit integers, or what erfinv gives."""

_FACTORS = 0x7FEB352D, 0x846CA68B
_LOW = np.arange(2**16, dtype=np.uint32)


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
    if device is None or device.type == "cpu":
        made = np.empty(count, np.uint32)
        _fill_words(made, np.empty(min(count, len(_LOW)), np.uint32), key, start)
        return torch.from_numpy(made.view(np.int32))
    words = torch.arange(count, dtype=torch.int32, device=device).add_(_wrap(start + key))
    shifted = torch.empty_like(words)

    def fold(bits: int) -> None:
        torch.bitwise_right_shift(words, bits, out=shifted)
        words.bitwise_xor_(shifted.bitwise_and_((1 << (32 - bits)) - 1))

    fold(16)
    words.mul_(_wrap(_FACTORS[0])).add_(_wrap(key >> 31))
    fold(15)
    words.mul_(_wrap(_FACTORS[1]))
    fold(16)
    return words


def _fill_words(words: np.ndarray, room: np.ndarray, key: int, start: int) -> None:
    """The same words by NumPy, whose unsigned integers shift without a mask and in vectors, a cache at a time.

    Counters with the same upper half are a range of lower halves beside it, of which the first fold is one operation.

    Args:
        words: uint32, to be filled.
        room: uint32, as many or 2¹⁶, to be overwritten.
        key: as of `random_words`.
        start: index of the first.
    """
    done = 0
    while done < len(words):
        upper, lower = divmod((start + key + done) % 2**32, len(_LOW))
        size = min(len(_LOW) - lower, len(words) - done)
        part, moved = words[done : done + size], room[:size]
        np.bitwise_xor(_LOW[lower : lower + size], np.uint32(upper * 0x10001), out=part)
        np.multiply(part, np.uint32(_FACTORS[0]), out=part)
        np.add(part, np.uint32((key >> 31) % 2**32), out=part)
        np.bitwise_xor(part, np.right_shift(part, 15, out=moved), out=part)
        np.multiply(part, np.uint32(_FACTORS[1]), out=part)
        np.bitwise_xor(part, np.right_shift(part, 16, out=moved), out=part)
        done += size


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
    words = basis_words(key, rows, columns, first=first, device=device)
    scale, shift = _SCALES[law]
    values = torch.empty(rows, columns, dtype=dtype, device=device)
    return _values(words, columns, law, values).add_(shift).mul_(scale)


def basis_words(
    key: int, rows: int, columns: int, *, first: int = 0, device: torch.device | None = None
) -> Int[Tensor, "rows half"]:
    """The words of which `random_matrix` makes these rows: one for two numbers.

    Args:
        key: names the matrix.
        rows: how many rows.
        columns: numbers in a row.
        first: index of the first row.
        device: where to make them.
    """
    half = (columns + 1) // 2
    return random_words(key, rows * half, start=first * half, device=device).view(rows, half)


def _values(
    words: Int[Tensor, "rows half"], columns: int, law: Law, values: Float[Tensor, "rows columns"]
) -> Float[Tensor, "rows columns"]:
    """Fill ``values`` with what `_SCALES` makes a law's numbers of."""
    values.copy_(words.view(torch.int16)[:, :columns])
    return values.add_(0.5).mul_(2.0**-15).erfinv_() if law == "normal" else values


def permutation(key: int, n: int) -> Int[Tensor, " n"]:
    """A uniformly random order of 0 … n − 1."""
    return random_words(key, n).argsort(stable=True)


def default_chunk(size: int, device: torch.device) -> int:
    """How many matrices of ``size`` numbers to hold at once: what fits a CPU's cache, or fills an accelerator."""
    return max(1, 2 ** (17 if device.type == "cpu" else 24) // size)


def basis_block(size: int) -> int:
    """Basis matrices of ``size`` numbers that one product takes: fixed, so that neither the chunk size nor what is kept
    can change a rounding."""
    return min(max(1 << max(2**17 // size, 1).bit_length() - 1, 8), 64)


@torch.library.custom_op(
    "eckart::mix_random_basis",
    mutates_args=(),
    schema="(Tensor coefficients, SymInt key, SymInt size, str law, SymInt chunk, Tensor? words=None) -> Tensor",
)
def mix_random_basis(
    coefficients: Tensor, key: int, size: int, law: str, chunk: int, words: Tensor | None = None
) -> Tensor:
    """Σᵢ cᵢ Mᵢ over random rows Mᵢ that are made, used and forgotten: ``c @ random_matrix(key, k, size, law)``.

    Differentiable in ``coefficients``; the backward pass makes the rows again, and nothing is kept for it. On a CPU
    the result has the same bits for every ``chunk``, and whatever part of the words is kept.

    Args:
        coefficients: c ``(k,)``, or several ``(n, k)`` for which the rows are made once.
        key: names the basis.
        size: numbers in one basis matrix.
        law: as `random_matrix`.
        chunk: rows in memory at once, rounded up to a multiple of `basis_block`; 0 takes `default_chunk`.
        words: of the first rows, as `basis_words` gives them, in whole blocks: these are not made again.

    Returns:
        The sum ``(size,)``, or ``(n, size)``, in float32, or float64 where the coefficients are.
    """
    c = coefficients.to(torch.promote_types(coefficients.dtype, torch.float32))
    total = c.new_zeros(*c.shape[:-1], size)
    with torch.autocast(c.device.type, enabled=False):
        for first, block in _blocks(key, c.shape[-1], size, cast(Law, law), chunk, words, c):
            used = c[..., first : first + len(block)]
            total = total.addmv_(block.t(), used) if c.dim() == 1 else total.addmm_(used, block)
    scale, shift = _SCALES[cast(Law, law)]
    return total.add_(c.sum(-1, keepdim=True) * shift).mul_(scale)


@torch.library.custom_op(
    "eckart::dot_random_basis",
    mutates_args=(),
    schema="(Tensor g, SymInt key, SymInt k, str law, SymInt chunk, Tensor? words=None) -> Tensor",
)
def dot_random_basis(
    g: Tensor, key: int, k: int, law: str, chunk: int, words: Tensor | None = None
) -> Tensor:
    """⟨g, Mᵢ⟩ for i < k: ``g @ random_matrix(key, k, size, law).t()``, the transpose of `mix_random_basis`."""
    g = g.to(torch.promote_types(g.dtype, torch.float32)).contiguous()
    with torch.autocast(g.device.type, enabled=False):
        blocks = _blocks(key, k, g.shape[-1], cast(Law, law), chunk, words, g)
        products = torch.cat([block @ g if g.dim() == 1 else g @ block.t() for _, block in blocks], -1)
    scale, shift = _SCALES[cast(Law, law)]
    return products.add_(g.sum(-1, keepdim=True) * shift).mul_(scale)


def _blocks(
    key: int, k: int, size: int, law: Law, chunk: int, words: Tensor | None, like: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """The first k rows, a block at a time and each with the index of its first: those that are kept, then the others,
    of which a chunk is made at once. A block is overwritten by what follows it."""
    block, kept, half = basis_block(size), 0 if words is None else len(words), (size + 1) // 2
    step = -(-(chunk or default_chunk(size, like.device)) // block) * block
    starts, most = [*range(0, kept, step), *range(kept, k, step)], min(step, k)
    values, on_host = like.new_empty(most, size), like.device.type == "cpu" and kept < k
    made = np.empty((most, half) if on_host else (0, half), np.uint32)
    room = np.empty(min(made.size, len(_LOW)), np.uint32)
    for first, end in zip(starts, [*starts[1:], k], strict=True):
        if words is not None and first < kept:
            found = words[first:end]
        elif on_host:
            _fill_words(made[: end - first].reshape(-1), room, key, first * half)
            found = torch.from_numpy(made[: end - first].view(np.int32))
        else:
            found = basis_words(key, end - first, size, first=first, device=like.device)
        _values(found, size, law, values[: end - first])
        for row in range(0, end - first, block):
            yield first + row, values[row : min(row + block, end - first)]


@mix_random_basis.register_fake
def _(coefficients: Tensor, key: int, size: int, law: str, chunk: int, words: Tensor | None = None) -> Tensor:
    dtype = torch.promote_types(coefficients.dtype, torch.float32)
    return coefficients.new_empty(*coefficients.shape[:-1], size, dtype=dtype)


@dot_random_basis.register_fake
def _(g: Tensor, key: int, k: int, law: str, chunk: int, words: Tensor | None = None) -> Tensor:
    return g.new_empty(*g.shape[:-1], k, dtype=torch.promote_types(g.dtype, torch.float32))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    coefficients, ctx.key, _, ctx.law, ctx.chunk, words = inputs
    ctx.save_for_backward(words)
    ctx.k, ctx.dtype = coefficients.shape[-1], coefficients.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (words,) = ctx.saved_tensors
    found = dot_random_basis(grad, ctx.key, ctx.k, ctx.law, ctx.chunk, words)
    return found.to(ctx.dtype), None, None, None, None, None


mix_random_basis.register_autograd(_backward, setup_context=_remember)
