"""LoRA: ΔW = (α/r) · B A, two trained factors with B = 0 at the start; rsLoRA divides by √r instead.

    x (…, in) ── lora_Aᵀ ──> (…, r) ── lora_Bᵀ ──> (…, out) · α/r

Source: Hu et al., 2021, arXiv:2106.09685; rank-stabilised scaling: Kalajdzievski, 2023, arXiv:2312.03732.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.adapters._base import AdapterConfig, LowRankAdapter
from eckart.adapters._layers import LayerContext, LayerShape
from eckart.adapters._registry import register_adapter


@register_adapter(
    "lora",
    title="LoRA",
    paper="Hu et al., 2021",
    arxiv="2106.09685",
    trains="two factors, r(in + out) a layer",
    saves="both factors",
    aliases=("rslora",),
)
@dataclass
class LoRAConfig(AdapterConfig):
    """LoRA: train two thin factors, ΔW = (α/r) B A (Hu et al., 2021, arXiv:2106.09685).

    Args:
        r: rank; 8 when None.
        lora_alpha: α of the scaling.
        use_rslora: divide α by √r instead of r, so that the update does not fade as r grows.

    Raises:
        InputError: r below 1 or above ``min(out, in)``.
    """

    r: int | None = None
    lora_alpha: float = 16.0
    use_rslora: bool = False

    learning_rates: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3)

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        """Σ r (in + out)."""
        return sum(self.rank(s) * (s.in_features + s.out_features) for s in shapes)

    def build(self, weight: Float[Tensor, "out in"], layer: LayerContext) -> LoRA:
        """A is uniform on ±1/√in; for an embedding, whose input is one-hot, A = 0 and B is normal."""
        r, (out, inner) = self.rank(layer.shape), weight.shape
        dtype, generator = torch.promote_types(weight.dtype, torch.float32), layer.generator("lora")
        if layer.shape.kind == "embedding":
            a = torch.zeros(r, inner, dtype=dtype)
            b = torch.randn(out, r, generator=generator, dtype=dtype)
        else:
            a = torch.rand(r, inner, generator=generator, dtype=dtype).mul_(2).sub_(1).div_(math.sqrt(inner))
            b = torch.zeros(out, r, dtype=dtype)
        return LoRA(a, b, self.lora_alpha / (math.sqrt(r) if self.use_rslora else r), layer)


class LoRA(LowRankAdapter):
    """ΔW = scale · lora_B lora_A."""

    def __init__(
        self, a: Float[Tensor, "r in"], b: Float[Tensor, "out r"], scale: float, layer: LayerContext
    ) -> None:
        super().__init__(layer)
        self.lora_A, self.lora_B, self.scale = nn.Parameter(a), nn.Parameter(b), scale

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """The two parameters."""
        return self.lora_A, self.lora_B

    @property
    def factor_rank(self) -> int:
        """r."""
        return self.lora_A.shape[0]
