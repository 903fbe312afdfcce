"""Frozen weights in four bits: blocks of numbers, each a level of a table times the block's scale.

With blocks B of 64 numbers, a scale s_B in bfloat16 and 16 levels ℓ₀ < … < ℓ₁₅:  Ŵᵢ = s_B ℓ_{cᵢ},  cᵢ the level that is
nearest to Wᵢ / s_B; 4.25 bits a number.

* ``int4``: equal steps, ℓ = −7/8, …, 8/8; s_B is the number of the block that is largest in size, with its sign.
* ``nf4``: quantiles of the normal distribution, so that each level is as likely as the next; s_B = max |Wᵢ|.

Source of nf4: Dettmers et al., "QLoRA", 2023, arXiv:2305.14314 (appendix E; its second quantisation, of the scales,
is left out).
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from torchao.utils import TorchAOBaseTensor  # type: ignore[import-untyped]

Code = Literal["int4", "nf4"]
BLOCK = 64
OFFSET = (1 / 32 + 1 / 30) / 2
"""Of probability, beyond the outermost quantiles of nf4: the mean of what 16 levels and 15 would leave."""


def _normal_levels() -> list[float]:
    """Seven quantiles below zero, zero, and eight above it, from a half to 1 − `OFFSET`, as shares of the largest."""
    draw, most = NormalDist(), NormalDist().inv_cdf(1 - OFFSET)
    above = [draw.inv_cdf(0.5 + (0.5 - OFFSET) * i / 8) / most for i in range(1, 9)]
    below = [draw.inv_cdf(0.5 + (0.5 - OFFSET) * i / 7) / most for i in range(1, 8)]
    return sorted([*(-level for level in below), 0.0, *above])


LEVELS: dict[str, list[float]] = {"int4": [i / 8 for i in range(-7, 9)], "nf4": _normal_levels()}


class FourBits(TorchAOBaseTensor):  # type: ignore[misc]
    """A frozen weight in four bits, for which torchao's base class answers copies and moves between devices.

    Args:
        codes: two to a byte, the first in the lower half.
        scales: of the blocks.
        code: the table of levels.
        shape: of the weight.
        dtype: of what it is made of.
    """

    tensor_data_names = ("codes", "scales")
    tensor_attribute_names = ("code", "shape", "dtype")
    bits = 4

    def __new__(
        cls,
        codes: UInt8[Tensor, " half"],
        scales: Float[Tensor, " blocks"],
        code: Code,
        shape: torch.Size,
        dtype: torch.dtype,
    ) -> FourBits:
        made: FourBits = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=codes.device, requires_grad=False
        )
        return made

    def __init__(
        self, codes: Tensor, scales: Tensor, code: Code, shape: torch.Size, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.codes, self.scales, self.code = codes, scales, code

    @classmethod
    def of(cls, weight: Float[Tensor, "out in"], code: Code) -> FourBits:
        """A weight at the nearest levels."""
        flat = weight.detach().float().flatten()
        blocks = F.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
        largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        scales = (largest.abs() if code == "nf4" else largest).to(torch.bfloat16)
        levels = torch.tensor(LEVELS[code], device=weight.device)
        shares = (blocks / scales.float()).nan_to_num(0.0)  # of a block of zeros any level will do
        codes = torch.bucketize(shares, (levels[1:] + levels[:-1]) / 2).to(torch.uint8).view(-1, 2)
        return cls(codes[:, 0] | codes[:, 1] << 4, scales.flatten(), code, weight.shape, weight.dtype)

    def dequantize(self) -> Float[Tensor, "out in"]:
        """The weight at its levels."""
        levels = torch.tensor(LEVELS[self.code], device=self.codes.device)
        pairs = torch.stack([levels.repeat(16), levels.repeat_interleave(16)], dim=1)  # of each byte
        blocks = F.embedding(self.codes.int(), pairs).view(-1, BLOCK) * self.scales.float()[:, None]
        return blocks.flatten()[: self.numel()].view(self.shape).to(self.dtype)


class _Linear(torch.autograd.Function):
    """x Ŵᵀ, for which the weight is made again in the backward pass instead of being kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: FourBits) -> Tensor:
        ctx.weight = weight
        return x @ weight.dequantize().to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.weight.dequantize().to(gradient.dtype), None


@FourBits.implements_torch_function([F.linear])  # type: ignore[untyped-decorator]
def _linear(func: Any, types: Any, args: Any, kwargs: Any) -> Tensor:
    x, weight, *bias = args
    bias = [*bias, kwargs.get("bias")][0]
    product: Tensor = _Linear.apply(x, weight)  # type: ignore[no-untyped-call]
    return product if bias is None else product + bias.to(product.dtype)
