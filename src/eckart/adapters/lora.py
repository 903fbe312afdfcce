"""LoRA: ΔW = (α/r) · B A, two trained factors with B = 0 at the start; rsLoRA divides by √r instead.

    x (…, in) ── lora_Aᵀ ──> (…, r) ── lora_Bᵀ ──> (…, out) · α/r

Source: Hu et al., 2021, arXiv:2106.09685; rank-stabilised scaling: Kalajdzievski, 2023, arXiv:2312.03732.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from peft import LoraConfig as PeftLoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from eckart.adapters._base import LowRankAdapter
from eckart.adapters._config import AdapterConfig
from eckart.adapters._from_peft import our_key, peft_options
from eckart.adapters._layers import LayerContext, LayerShape
from eckart.adapters._pefts_parameters import unstack
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
        InputError: r below 1.
    """

    r: int | None = None
    lora_alpha: float = 16.0
    use_rslora: bool = False

    learning_rates: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3)
    peft_types: ClassVar[tuple[str, ...]] = ("LORA",)

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
        return LoRA(a, b, self.scaling(r), layer)

    def scaling(self, r: int) -> float:
        """α/r, or α/√r."""
        return self.lora_alpha / (math.sqrt(r) if self.use_rslora else r)

    @classmethod
    def read_peft(
        cls, saved: dict[str, Any], tensors: dict[str, Tensor], base: nn.Module
    ) -> tuple[LoRAConfig, dict[str, Tensor]]:
        """PEFT's own LoRA. A layer's own rank goes into ``rank_pattern``, its own α into B; a rank above
        ``min(out, in)`` is lowered by putting the thin side into the other factor; stacked factors are taken apart."""
        read = ["r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"]
        read.append("target_parameters")
        if saved.get("init_lora_weights", True) in _UNCHANGED_BASE:
            read.append("init_lora_weights")
        options = peft_options(saved, PeftLoraConfig, read)
        config = cls(
            r=saved["r"],
            lora_alpha=saved["lora_alpha"],
            use_rslora=bool(saved.get("use_rslora")),
            dropout=saved.get("lora_dropout") or 0.0,
            target_parameters=saved.get("target_parameters"),
            **options,
        )
        factors: dict[str, dict[str, Tensor]] = {}
        state: dict[str, Tensor] = {}
        for key, value in tensors.items():
            match = re.fullmatch(r"(.*)\.lora_(?:embedding_)?([AB])(?:\.weight)?", key)
            if match is None:
                state[key] = value
            else:
                factors.setdefault(match[1], {})[match[2]] = value.flatten(1)
        alphas, ranks = saved.get("alpha_pattern") or {}, {}
        for layer, name, pair in unstack(base, config, factors):
            if pair.keys() == {"A", "B"}:
                own = alphas.get(get_pattern_key(list(alphas), name), config.lora_alpha)
                before = config.scaling(len(pair["A"])) * own / config.lora_alpha
                pair = dict(zip("AB", _within_cap(pair["A"], pair["B"]), strict=True))
                if (change := before / config.scaling(len(pair["A"]))) != 1:
                    pair["B"] = pair["B"] * change
                if len(pair["A"]) != config.r:
                    ranks[re.escape(name)] = len(pair["A"])
            state |= {our_key(layer, f"lora_{letter}"): value for letter, value in pair.items()}
        config.rank_pattern = ranks or None
        return config, state


class LoRA(LowRankAdapter):
    """ΔW = scale · lora_B lora_A."""

    own_directions = True

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


_UNCHANGED_BASE = (True, False, "gaussian", "orthogonal", "eva")
"""Ways in which PEFT starts a LoRA without changing the base weight; the others need the weight they left behind."""


def _within_cap(
    a: Float[Tensor, "r in"], b: Float[Tensor, "out r"]
) -> tuple[Float[Tensor, "cap in"], Float[Tensor, "out cap"]]:
    """The same product with a rank of at most ``min(out, in)``."""
    (r, inner), out = a.shape, len(b)
    if r <= min(out, inner):
        return a, b
    product = (b.double() @ a.double()).to(a.dtype)
    return (product, torch.eye(out).to(b)) if out <= inner else (torch.eye(inner).to(a), product)
