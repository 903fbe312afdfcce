"""Products with the powers 1, a, a², … of many numbers a, without forming the matrix of all of them.

The exponents are written l = pQ + q with Q ≈ √L. Then a^l = (a^Q)^p · a^q, and a product with all powers is one matrix
product of two blocks of √L powers each. Powers are taken as exp(l log a), with l log a in float64.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Inexact
from torch import Tensor


def power_sums(
    v: Inexact[Tensor, "*batch h n"], log_a: Inexact[Tensor, "h n"], length: int
) -> Float[Tensor, "*batch h length"]:
    """Re Σ_n v_n a_n^l for l = 0 … L − 1: the product with a Vandermonde matrix.

    O(n √L) numbers of memory beside the result, in the backward pass too, and 2 n L real multiply–adds (n L where
    ``log_a`` is real).

    Args:
        v: weights; their precision is that of the result.
        log_a: any logarithm of a; real only where a is positive.
        length: L, at least 1.
    """
    coarse, fine = _powers(log_a, length, v.dtype)
    if fine.is_complex():
        left = v.unsqueeze(-1) * coarse
        left, fine = torch.cat([left.real, -left.imag], dim=-2), torch.cat([fine.real, fine.imag], dim=-2)
    else:
        left = v.real.unsqueeze(-1) * coarse
    return _einsum("...hnp,hnq->...hpq", left, fine).flatten(-2)[..., :length]


def power_moments(
    u: Float[Tensor, "*batch h length"], log_a: Inexact[Tensor, "h n"]
) -> Inexact[Tensor, "*batch h n"]:
    """Σ_l u_l a_n^l: the product with the transposed matrix, real where ``log_a`` is.

    Args:
        u: its precision is that of the result.
        log_a: any logarithm of a; real only where a is positive.
    """
    coarse, fine = _powers(log_a, u.shape[-1], u.dtype)
    blocks = coarse.shape[-1], fine.shape[-1]
    u = F.pad(u, (0, math.prod(blocks) - u.shape[-1])).view(*u.shape[:-1], *blocks)
    if fine.is_complex():
        inner = _einsum("...hpq,hnqc->...hpnc", u, torch.view_as_real(fine))
        inner = torch.view_as_complex(inner.contiguous())
    else:
        inner = _einsum("...hpq,hnq->...hpn", u, fine)
    return (inner * coarse.mT).sum(-2)


def _powers(log_a: Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """a^(pQ) and a^q, a row for each a, in the precision of ``dtype``."""
    fine = math.isqrt(length - 1) + 1
    coarse = -(-length // fine)
    wide = torch.float32 if log_a.device.type == "mps" else torch.float64
    if log_a.is_complex():
        wide, dtype = (torch.promote_types(x, torch.complex32) for x in (wide, dtype))
    log_a = log_a.to(wide).unsqueeze(-1)
    steps = torch.arange(max(coarse, fine), device=log_a.device)
    return (log_a * (fine * steps[:coarse])).exp().to(dtype), (log_a * steps[:fine]).exp().to(dtype)


def _einsum(equation: str, a: Tensor, b: Tensor) -> Tensor:
    """In the precision of its operands, whatever autocast says."""
    with torch.autocast(a.device.type, enabled=False):
        product: Tensor = torch.einsum(equation, a, b)
    return product
