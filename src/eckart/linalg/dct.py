"""The discrete cosine transform as a matrix and by the fast Fourier transform: pure functions.

    Q₀[i, j] = √(2/n) cos(π i (2j + 1)/(2n)), row 0 divided by √2          Q₀ Q₀ᵀ = I

x Q₀ᵀ is the orthonormal DCT-II of the rows of x, x Q₀ their DCT-III, its inverse. Row i of Q₀ has frequency i.

Source: Makhoul, IEEE Trans. ASSP 28 (1980), for the transform by one FFT of the same length.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

_BLOCK = 256
"""Rows of Q₀ that `dct_l1_norms` holds at once."""


def dct_matrix(
    n: int, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> Float[Tensor, "n n"]:
    """Q₀, orthogonal to 1e-12 in float64 for n in the thousands: the angle is reduced in integers.

    Args:
        n: its size.
        dtype: it is evaluated in float64 and rounded once.
        device: where to make it.
    """
    return _rows(0, n, n, device).to(dtype)


def dct_l1_norms(
    n: int, of: str, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> Float[Tensor, " n"]:
    """Σ|q| of every row or column of Q₀, without holding all of it.

    Args:
        n: its size.
        of: ``"rows"`` or ``"columns"``.
        dtype: of the result.
        device: where to make it.
    """
    blocks = (_rows(first, min(_BLOCK, n - first), n, device).abs() for first in range(0, n, _BLOCK))
    if of == "rows":
        return torch.cat([block.sum(1) for block in blocks]).to(dtype)
    return torch.stack([block.sum(0) for block in blocks]).sum(0).to(dtype)


def _rows(first: int, count: int, n: int, device: torch.device | None) -> Tensor:
    i = torch.arange(first, first + count, device=device)
    j = torch.arange(n, device=device)
    turns = (i[:, None] * (2 * j + 1)) % (4 * n)
    rows = (turns.double() * (math.pi / (2 * n))).cos_().mul_(math.sqrt(2 / n))
    if first == 0:
        rows[0] *= math.sqrt(0.5)
    return rows


@torch.library.custom_op("eckart::dct2", mutates_args=(), schema="(Tensor x) -> Tensor")
def dct2(x: Tensor) -> Tensor:
    """x Q₀ᵀ by a real FFT of length n: with v the even columns of x and then the odd ones in falling order,
    V = FFT(v) and W_k = exp(−iπk/(2n)) V_k, y_k = √(2/n) Re W_k and y_{n−k} = −√(2/n) Im W_k.

    Args:
        x: (…, n), float32 or float64.
    """
    if x.numel() == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    n = x.shape[-1]
    v = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)
    w = torch.fft.rfft(v).mul_(_twiddle(n, x, -1))
    y = torch.empty_like(v)
    torch.mul(w.real, math.sqrt(2 / n), out=y[..., : n // 2 + 1])
    y[..., 0] *= math.sqrt(0.5)
    if n > 2:
        torch.mul(w.imag[..., 1 : (n + 1) // 2].flip(-1), -math.sqrt(2 / n), out=y[..., n // 2 + 1 :])
    return y


@torch.library.custom_op("eckart::dct3", mutates_args=(), schema="(Tensor y) -> Tensor")
def dct3(y: Tensor) -> Tensor:
    """y Q₀ by a real FFT of length n, the steps of `dct2` backwards.

    Args:
        y: (…, n), float32 or float64.
    """
    if y.numel() == 0:
        return torch.empty_like(y, memory_format=torch.contiguous_format)
    n = y.shape[-1]
    half = n // 2 + 1
    real = y[..., :half] * math.sqrt(n / 2)
    real[..., 0] *= math.sqrt(2)
    w = torch.complex(real, torch.zeros_like(real))
    torch.mul(y[..., n - half + 1 :].flip(-1), -math.sqrt(n / 2), out=w.imag[..., 1:])
    v = torch.fft.irfft(w.mul_(_twiddle(n, y, 1)), n=n)
    x = torch.empty_like(v)
    x[..., ::2] = v[..., : (n + 1) // 2]
    x[..., 1::2] = v[..., (n + 1) // 2 :].flip(-1)
    return x


def _twiddle(n: int, like: Tensor, sign: int) -> Tensor:
    """exp(± iπk/(2n)), k = 0 … n/2."""
    angle = torch.arange(n // 2 + 1, dtype=torch.float64, device=like.device) * (sign * math.pi / (2 * n))
    return torch.complex(angle.cos().to(like.dtype), angle.sin().to(like.dtype))


@dct2.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@dct3.register_fake
def _(y: Tensor) -> Tensor:
    return y.new_empty(y.shape)
