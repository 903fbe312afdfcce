"""LoLDU: the first r pivots of an LU decomposition of a frozen weight train, its triangles stay.

    W₀ = P L diag(D) U          ΔW = B (σ z − σ₀ z₀) A,   B = P L[:, :r],   A = U[:r]

    lora_B (out, r)   lora_A (r, in)   frozen, rebuilt from W₀ and the r pivot rows
    vector_z (r)                       trained: z − z₀, zero at the start
    scaling_factor (1)                 σ, trained on request; σ₀ = lora_alpha / r

Source: Shi et al., "LoLDU", 2024, arXiv:2410.13618.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eckart.adapters._config import AdapterConfig
from eckart.adapters._diagonal import DiagonalAdapter
from eckart.adapters._kept import kept, own
from eckart.adapters._layers import LayerContext, LayerShape
from eckart.adapters._registry import register_adapter
from eckart.errors import InputError
from eckart.linalg.lu import ldu, row_order

InitMethod = Literal["lu", "constant", "uniform", "normal", "s_uniform", "s_normal", "ones", "zeros"]


@register_adapter(
    "loldu",
    title="LoLDU",
    paper="Shi et al., 2024",
    arxiv="2410.13618",
    trains="the first r pivots of an LU decomposition",
    saves="r numbers and r row numbers per layer",
)
@dataclass
class LoLDUConfig(AdapterConfig):
    """LoLDU: train the first r pivots of W₀ = P L diag(D) U, W = W₀ + P L_r diag(σ z − σ₀ z₀) U_r.

    Args:
        r: how many pivots train, at most ``min(out, in)``.
        lora_alpha: σ₀ = lora_alpha / r. None is r, so that σ₀ = 1 and a learning rate suits any r; the authors' code
            has 1.
        init_method: z₀: the pivots D ("lu"), their mean ("constant"), U(−|m|/2, |m|/2) of the mean m ("uniform"),
            N(mean, std) of them ("normal"), U(−1, 1) ("s_uniform"), N(0, 1) ("s_normal"), "ones" or "zeros". W = W₀ at
            the start for each; z₀ is felt only where σ trains.
        train_scaling: σ trains too, one number per layer.

    Raises:
        InputError: an option outside its range.

    Source: Shi et al., 2024, arXiv:2410.13618.
    """

    r: int | None = None
    lora_alpha: float | None = None
    init_method: InitMethod = "lu"
    train_scaling: bool = False

    default_r: ClassVar[int] = 64
    needs_base: ClassVar[bool] = True
    checks: ClassVar[tuple[str, ...]] = ("pivots",)
    learning_rates: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_method not in get_args(InitMethod):
            raise InputError(
                f"init_method is {self.init_method!r}: give one of {', '.join(get_args(InitMethod))}"
            )
        if self.lora_alpha is not None and not self.lora_alpha > 0:
            raise InputError(f"lora_alpha is {self.lora_alpha}: give a positive number")

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        return sum(self.rank(shape) + self.train_scaling for shape in shapes)

    def saved_bytes(self, shapes: Sequence[LayerShape]) -> int:
        basis = sum(self.rank(s) * (s.in_features + s.out_features + 1) for s in shapes)
        rows = sum(self.rank(shape) for shape in shapes)
        return 4 * (self.trainable_parameters(shapes) + rows + self.save_basis * basis)

    def build(self, weight: Float[Tensor, "out in"], layer: LayerContext) -> LoLDU:
        return LoLDU(weight, layer, self)


class LoLDU(DiagonalAdapter):
    """ΔW = B diag(σ (z₀ + vector_z) − σ₀ z₀) A with ``vector_z (r)`` trained."""

    pivots: Tensor
    lora_A: Tensor
    lora_B: Tensor
    vector_z0: Tensor
    scaling_factor: nn.Parameter | None

    def __init__(self, weight: Float[Tensor, "out in"], layer: LayerContext, config: LoLDUConfig) -> None:
        super().__init__(layer)
        r = config.rank(layer.shape)
        self.init_method = config.init_method
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))

        def make() -> tuple[Tensor, ...]:
            pivots = row_order(wide)[:r].to(torch.int32)
            return pivots, *_factors(wide, pivots)

        pivots, *factors = kept(weight, make, "ldu", r, shared=not config.save_basis)
        self.register_buffer("pivots", pivots.clone())
        for name, value in self._frozen(*factors).items():
            self.register_buffer(name, value, persistent=config.save_basis)
        self.vector_z = nn.Parameter(torch.zeros_like(self.vector_z0))
        self.scale0 = 1.0 if config.lora_alpha is None else config.lora_alpha / r
        scale = (
            nn.Parameter(torch.full_like(self.vector_z0[:1], self.scale0)) if config.train_scaling else None
        )
        self.register_parameter("scaling_factor", scale)

    def basis(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        return self.lora_A, self.lora_B

    def decomposition(self) -> tuple[Float[Tensor, "k in"], Float[Tensor, " k"], Float[Tensor, "out k"]]:
        return self.lora_A, self.vector_z0, self.lora_B  # of W₀ where z₀ are its pivots

    def diagonal(self) -> Float[Tensor, " r"]:
        if self.scaling_factor is None:
            return self.scale0 * self.vector_z
        return self.scaling_factor * self.vector_z + (self.scaling_factor - self.scale0) * self.vector_z0

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}pivots")
        if stored is not None and f"{prefix}lora_A" not in state_dict:
            self._follow(stored.to(self.pivots.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _follow(self, pivots: Int[Tensor, " r"]) -> None:
        """Rebuild the triangles with the pivots of a checkpoint, where this machine would choose others."""
        if torch.equal(pivots, self.pivots):
            return
        rows = self.layer.shape.out_features
        if pivots.shape != self.pivots.shape or len({p for p in pivots.tolist() if 0 <= p < rows}) != len(
            pivots
        ):
            raise InputError(
                f"the checkpoint's pivots of layer {self.layer.shape.name} are not {len(self.pivots)} different row "
                f"numbers below {rows}: the file was altered"
            )
        weight = self.layer.base_weight().detach()
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        for name, value in self._frozen(*_factors(wide, pivots)).items():
            setattr(self, name, value.to(getattr(self, name)))

    def _frozen(
        self, b: Float[Tensor, "out r"], d: Float[Tensor, " r"], a: Float[Tensor, "r in"]
    ) -> dict[str, Tensor]:
        z0 = _start(d, self.init_method, self.layer.generator("vector_z"))
        return {"lora_A": a, "lora_B": b, "vector_z0": z0.contiguous()}


def _factors(weight: Float[Tensor, "out in"], pivots: Int[Tensor, " r"]) -> Sequence[Tensor]:
    """B, d and A, each in memory of its own."""
    return [own(t, weight.dtype, weight.device) for t in ldu(weight, pivots)]


def _start(d: Float[Tensor, " r"], method: InitMethod, generator: torch.Generator) -> Float[Tensor, " r"]:
    mean, spread = d.mean(), d.std(correction=0)
    uniform = (2 * torch.rand(d.shape, generator=generator) - 1).to(d)
    normal = torch.randn(d.shape, generator=generator).to(d)
    return {
        "lu": d,
        "constant": mean.expand_as(d),
        "uniform": uniform * mean.abs() / 2,
        "normal": mean + spread * normal,
        "s_uniform": uniform,
        "s_normal": normal,
        "ones": torch.ones_like(d),
        "zeros": torch.zeros_like(d),
    }[method]
