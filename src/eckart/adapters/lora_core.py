"""LoRA with a core between its factors, ΔW = c(R) · B C A, the adapter that IncreLoRA and TriAdaptLoRA grow.

    x (…, in) ── lora_Aᵀ ──> (…, R) ── Cᵀ ──> (…, R) ── lora_Bᵀ ──> (…, out) · c(R)

    core="diagonal"    C = diag(lora_E), lora_E (R, 1)       IncreLoRA, after AdaLoRA
    core="full"        C = lora_C (R, R)                     TriAdaptLoRA, whose triangles make up a full matrix

Sources: Zhang et al., 2023, arXiv:2308.12043; Liang et al., 2025, arXiv:2501.08008.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.adapters._base import LowRankAdapter
from eckart.adapters._config import AdapterConfig
from eckart.adapters._layers import LayerContext, LayerShape
from eckart.adapters._registry import register_adapter
from eckart.errors import InputError

_EPSILON = 1e-5


@register_adapter(
    "lora-core",
    title="LoRA with a core",
    paper="Zhang et al., 2023",
    arxiv="2308.12043",
    trains="two factors and a core, r(in + out + 1) or r(in + out + r) a layer",
    saves="factors, core, and which directions count",
)
@dataclass
class CoreLoRAConfig(AdapterConfig):
    """LoRA with a core: ΔW = c(R) · B C A, whose rank R the rules increlora and triadaptlora grow.

    Args:
        r: directions that are there, of which R count; 8 when None.
        lora_alpha: α of the scaling.
        core: "diagonal" or "full".
        init: "core" starts from A, B normal and C = 0, "factor" from A normal, B = 0 and C = 1 (full: twice that).
        scaling: "rank" for c = α/(R + 1e-5), "constant" for c = α.

    Raises:
        InputError: an option outside its range.

    Source: Zhang et al., 2023, arXiv:2308.12043; Liang et al., 2025, arXiv:2501.08008.
    """

    r: int | None = None
    lora_alpha: float = 16.0
    core: Literal["diagonal", "full"] = "diagonal"
    init: Literal["core", "factor"] = "core"
    scaling: Literal["rank", "constant"] = "rank"

    learning_rates: ClassVar[tuple[float, ...]] = (1e-3, 3e-3, 1e-2)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (
            ("core", ("diagonal", "full")),
            ("init", ("core", "factor")),
            ("scaling", ("rank", "constant")),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}: give one of {', '.join(known)}")

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        """Σ r (in + out) + r, or r² with a full core."""
        ranks = [self.rank(shape) for shape in shapes]
        cores = sum(r if self.core == "diagonal" else r * r for r in ranks)
        return cores + sum(r * (s.in_features + s.out_features) for r, s in zip(ranks, shapes, strict=True))

    def saved_bytes(self, shapes: Sequence[LayerShape]) -> int:
        """4 for each trained number, 8 a layer for the rank that c divides by."""
        return 4 * self.trainable_parameters(shapes) + 8 * len(shapes)

    def build(self, weight: Float[Tensor, "out in"], layer: LayerContext) -> CoreLoRA:
        return CoreLoRA(weight, layer, self)


class CoreLoRA(LowRankAdapter):
    """ΔW = c · lora_B C lora_A; C is ``lora_C``, or the diagonal matrix of ``lora_E``."""

    own_directions = True
    lora_E: nn.Parameter
    lora_C: nn.Parameter
    ranknum: Tensor

    def __init__(self, weight: Float[Tensor, "out in"], layer: LayerContext, config: CoreLoRAConfig) -> None:
        super().__init__(layer)
        self.diagonal, self.alpha = config.core == "diagonal", config.lora_alpha
        self.constant = config.scaling == "constant"
        r, (out, inner), generator = config.rank(layer.shape), weight.shape, layer.generator("lora-core")
        dtype, device = torch.promote_types(weight.dtype, torch.float32), weight.device
        a = 0.02 * torch.randn(r, inner, generator=generator, dtype=dtype)
        b = 0.02 * torch.randn(out, r, generator=generator, dtype=dtype)
        of_core = config.init == "core"
        self.lora_A = nn.Parameter(a.to(device))
        self.lora_B = nn.Parameter((b if of_core else torch.zeros_like(b)).to(device))
        if self.diagonal:
            self.lora_E = nn.Parameter(
                torch.full((r, 1), 0.0 if of_core else 1.0, dtype=dtype, device=device)
            )
        else:
            self.lora_C = nn.Parameter((0.0 if of_core else 2.0) * torch.eye(r, dtype=dtype, device=device))
        self.register_buffer("ranknum", torch.tensor([r], device=device))
        self.count(r)

    @property
    def core(self) -> nn.Parameter:
        """The parameter of C."""
        return self.lora_E if self.diagonal else self.lora_C

    def count(self, rank: int) -> None:
        """Set R, the rank that c divides by: the active directions without those in reserve."""
        self.ranknum.fill_(rank)
        self.scale = self.alpha if self.constant else self.alpha / (rank + _EPSILON)

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        if self.diagonal:
            return self.lora_E * self.lora_A, self.lora_B
        b = self.lora_B if self.active is None else self.lora_B * self.active.to(self.lora_B.dtype)
        return self.lora_A, b @ self.lora_C

    @property
    def factor_rank(self) -> int:
        return self.lora_A.shape[0]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if (rank := state_dict.get(f"{prefix}ranknum")) is not None:
            self.count(int(rank))
