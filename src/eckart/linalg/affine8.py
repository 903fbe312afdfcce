"""Matrices in 8 bits, row by row: pure functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


class Affine8(NamedTuple):
    """x ≈ low + scale · codes, with one low and one scale for a row."""

    codes: UInt8[Tensor, "rows columns"]
    low: Float[Tensor, "rows 1"]
    scale: Float[Tensor, "rows 1"]


def quantize8(
    x: Float[Tensor, "rows columns"], low: Float[Tensor, "rows 1"], high: Float[Tensor, "rows 1"]
) -> Affine8:
    """Round to the nearest of 256 values that divide [low, high] evenly; the error is at most (high − low)/510.

    Args:
        x: lies in [low, high], row by row. A row of equal values comes back exactly.
        low: the least value of every row.
        high: the largest.
    """
    scale = (high - low) / 255
    codes = ((x - low) / torch.where(scale > 0, scale, 1)).round().clamp(0, 255)
    return Affine8(codes.to(torch.uint8), low, scale)


def dequantize8(packed: Affine8) -> Float[Tensor, "rows columns"]:
    """low + scale · codes."""
    return torch.addcmul(packed.low, packed.scale, packed.codes.to(packed.low.dtype))
