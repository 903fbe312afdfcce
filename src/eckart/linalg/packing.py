"""Rounding to a few bits of the largest entry, and packing the codes into bytes."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Bits = Literal[4, 8]


def pack_absmax(values: Float[Tensor, " n"], bits: Bits) -> tuple[UInt8[Tensor, " bytes"], Float[Tensor, ""]]:
    """Codes ``round(v / step)`` with ``step = max|v| / (2^(bits−1) − 1)``, as bytes (two codes in one at 4 bits).

    Args:
        values: finite numbers.
        bits: 8 or 4.

    Returns:
        The bytes and the step, in float32.
    """
    top = 2 ** (bits - 1) - 1
    step = (values.abs().max() / top).float()
    scaled = values.float() / step.clamp_min(torch.finfo(torch.float32).tiny)
    codes = (scaled.round().clamp(-top, top) + top).to(torch.uint8)
    if bits == 4:
        codes = torch.nn.functional.pad(codes, (0, codes.numel() % 2))
        codes = codes[::2] | (codes[1::2] << 4)
    return codes, step


def unpack_absmax(
    codes: UInt8[Tensor, " bytes"], step: Float[Tensor, ""], n: int, bits: Bits
) -> Float[Tensor, " n"]:
    """The rounded numbers back from `pack_absmax`, in float32."""
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=1).flatten()
    top: int = 2 ** (bits - 1) - 1
    return (codes[:n].float() - top) * step
