"""FLoRA (Tucker): ΔW as a small core times one factor for each dimension of the weight, which keeps its dimensions:

    ΔW[o, i, u, v] = s · Σ_{a,b,c,d} G[a, b, c, d] · P₀[i, a] · P₁[o, b] · P₂[u, c] · P₃[v, d]

    param_G (r_in, r_out, r_k1, …)   param_0 (in, r_in)   param_1 (out, r_out)   param_2 (k1, r_k1) …

For a linear layer ΔW = s · P₁ Gᵀ P₀ᵀ. A convolution runs in three stages, in → r_in pointwise, r_in → r_out with the
small kernel, r_out → out pointwise; ΔW is never formed. Source: Si et al., 2024, arXiv:2405.14739.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.adapters._base import LowRankAdapter, in_rows
from eckart.adapters._config import AdapterConfig
from eckart.adapters._layers import LayerContext, LayerShape
from eckart.adapters._registry import register_adapter
from eckart.errors import InputError


@register_adapter(
    "flora-tucker",
    title="FLoRA",
    paper="Si et al., 2024",
    arxiv="2405.14739",
    trains="a core and one factor for each dimension of the weight",
    saves="the core and the factors",
    aliases=("flora", "tucker"),
)
@dataclass
class FLoRATuckerConfig(AdapterConfig):
    """FLoRA: train a Tucker core and one factor for each dimension (Si et al., 2024, arXiv:2405.14739).

    Args:
        r: one rank, lowered to the size of every dimension, or one for each of in, out, k1, k2, …, of which a layer
            uses as many as it has dimensions; 8 when None.
        scale: s, not divided by any rank.
        lora_alpha: the language-model form instead of ``scale``: s = lora_alpha / max(r_in, r_out).
        freeze_spatial: no factors for the kernel's dimensions, whose ranks are then full (Tucker-2).
        factor_init: ``"kaiming"`` (normal, std √(½/r)), ``"orthonormal"`` columns, or ``"hosvd"``: the leading
            singular vectors of W's unfoldings. The core starts at zero.

    Raises:
        InputError: an option outside its range.
    """

    r: int | list[int] | None = None
    scale: float = 1.0
    lora_alpha: float | None = None
    freeze_spatial: bool = False
    factor_init: Literal["kaiming", "orthonormal", "hosvd"] = "kaiming"

    learning_rates: ClassVar[tuple[float, ...]] = (1e-3, 3e-3, 1e-2)

    def __post_init__(self) -> None:
        super().__post_init__()
        ranks: Any = self.r
        if isinstance(ranks, list | tuple) and (
            len(ranks) < 2 or any(isinstance(r, str) or int(r) != r or r < 1 for r in ranks)
        ):
            raise InputError(f"r is {self.r!r}: give whole numbers of at least 1 for in, out and the kernel")
        if self.factor_init not in ("kaiming", "orthonormal", "hosvd"):
            raise InputError(f"factor_init is {self.factor_init!r}: give one of kaiming, orthonormal, hosvd")

    def ranks(self, shape: LayerShape) -> tuple[int, ...]:
        """(r_in, r_out, r_k1, …) of a layer.

        Raises:
            InputError: too few ranks.
        """
        out, inner, *kernel = shape.weight
        sizes = (inner, out) if self.freeze_spatial else (inner, out, *kernel)
        full = tuple(kernel) if self.freeze_spatial else ()
        if not isinstance(self.r, list | tuple):
            return (*(min(self.rank(shape), size) for size in sizes), *full)
        if len(self.r) < len(sizes):
            raise InputError(
                f"r is {list(self.r)}, but layer {shape.name} has the dimensions {sizes} (in, out, kernel): give each "
                "a rank"
            )
        return (*(min(r, size) for r, size in zip(self.r, sizes, strict=False)), *full)

    def check(self, shape: LayerShape) -> None:
        """Its ranks."""
        self.ranks(shape)

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        """Σ (Π r_i + Σ d_i r_i)."""
        total = 0
        for shape in shapes:
            ranks, (out, inner, *kernel) = self.ranks(shape), shape.weight
            sizes = (inner, out) if self.freeze_spatial else (inner, out, *kernel)
            total += math.prod(ranks) + sum(d * r for d, r in zip(sizes, ranks, strict=False))
        return total

    def build(self, weight: Float[Tensor, "out in"], layer: LayerContext) -> FLoRATucker:
        """Factors from the generator or from W, and a zero core."""
        ranks, canonical = self.ranks(layer.shape), weight.reshape(layer.shape.weight).transpose(0, 1)
        dtype, generator = torch.promote_types(weight.dtype, torch.float32), layer.generator("flora")
        factors = []
        for axis, (size, r) in enumerate(zip(canonical.shape, ranks, strict=True)):
            if axis >= 2 and self.freeze_spatial:
                break
            if self.factor_init == "hosvd":
                unfolded = canonical.movedim(axis, 0).reshape(size, -1).to(dtype)
                factor = torch.linalg.eigh(unfolded @ unfolded.t()).eigenvectors.flip(1)[:, :r]
            else:
                factor = torch.randn(size, r, generator=generator, dtype=dtype) * math.sqrt(0.5 / r)
                factor = torch.linalg.qr(factor).Q if self.factor_init == "orthonormal" else factor
            factors.append(factor.contiguous())
        scale = self.scale if self.lora_alpha is None else self.lora_alpha / max(ranks[:2])
        return FLoRATucker(torch.zeros(ranks, dtype=dtype), factors, scale, layer)


class FLoRATucker(LowRankAdapter):
    """ΔW = scale · G ×₀ P₀ ×₁ P₁ ×₂ P₂ …, of matrix rank at most r_out."""

    param_0: nn.Parameter
    param_1: nn.Parameter

    def __init__(
        self,
        core: Float[Tensor, ...],
        factors: list[Float[Tensor, "_ _"]],
        scale: float,
        layer: LayerContext,
    ) -> None:
        super().__init__(layer)
        self.scale = scale
        self.param_G = nn.Parameter(core)
        self._spatial = range(2, len(factors))
        for axis, factor in enumerate(factors):
            self.register_parameter(f"param_{axis}", nn.Parameter(factor))

    def kernel(self) -> Float[Tensor, "r_out r_in ..."]:
        """The small convolution's weight: the core times the factors of the kernel's dimensions."""
        kernel = self.param_G.transpose(0, 1)
        for axis in self._spatial:
            kernel = torch.einsum("baz...,kz->ba...k", kernel, getattr(self, f"param_{axis}"))
        return kernel

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """The small kernel widened to in, and P₁."""
        widened = torch.einsum("ba...,ia->bi...", self.kernel(), self.param_0)
        return widened.flatten(1), self.param_1

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first two stages, in → r_in → r_out, and P₁ᵀ."""
        op, p0, small = self.layer.op, in_rows(self.param_0.t()), self.kernel()
        if x.is_floating_point():
            p0, small = p0.to(x.dtype), small.to(x.dtype)
        if op.kind != "conv":
            return op.apply(x, p0) @ small.t(), in_rows(self.param_1.t())
        spatial = small.dim() - 2
        pointwise = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[spatial - 1]
        entry = p0.reshape(*p0.shape, *[1] * spatial).repeat(op.groups, *[1] * (spatial + 1))
        h = pointwise(x, entry, groups=op.groups)
        return op.apply(h, small.repeat(op.groups, *[1] * (spatial + 1))), self.param_1.t()

    def multiply_adds(self, tokens: int) -> tuple[int, int]:
        """The three stages, or the product of the widened kernel and P₁; each once forward and twice backward."""
        out, inner, *kernel = self.layer.shape.weight
        r_in, r_out, elements = len(self.param_0[0]), len(self.param_1[0]), math.prod(kernel)
        through = inner * r_in + r_in * r_out * elements + r_out * out
        building = elements * r_out * inner * (r_in + out)
        return 3 * tokens * through, self.fold_cost(tokens) + 3 * building

    @property
    def factor_rank(self) -> int:
        """r_out."""
        return self.param_1.shape[1]
