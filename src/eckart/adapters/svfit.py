"""SVFit: the leading singular values of a frozen weight train, its singular vectors stay.

    W₀ = U diag(σ) Vᵀ          ΔW = U_r diag(s − σ_r) V_rᵀ

    U_r (out, r)   V_rᵀ (r, in)   frozen, rebuilt from W₀
    svfit_s (r)                   trained, zero at the start: s − σ_r itself, a, or ln(s/σ_r) (`param`)

Source: Sun et al., "SVFit", 2024, arXiv:2409.05926.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.adapters._config import AdapterConfig
from eckart.adapters._diagonal import DiagonalAdapter
from eckart.adapters._kept import frozen_svd, own
from eckart.adapters._layers import LayerContext, LayerShape
from eckart.adapters._registry import register_adapter
from eckart.errors import InputError
from eckart.linalg.svd import rank_for_energy


@register_adapter(
    "svfit",
    title="SVFit",
    paper="Sun et al., 2024",
    arxiv="2409.05926",
    trains="the r leading singular values",
    saves="r numbers per layer",
)
@dataclass
class SVFitConfig(AdapterConfig):
    """SVFit: train the leading singular values, W = W₀ + U_r diag(s − σ_r) V_rᵀ.

    Args:
        r: how many singular values train, at most ``min(out, in)``.
        energy: instead of r, as many as hold this share of the spectrum of each layer, in (0, 1].
        energy_norm: the share is of Σσ² ("squared") or of Σσ ("nuclear").
        param: what ``svfit_s`` is: "value" s = σ + svfit_s (the paper's), "relative" s = σ (1 + svfit_s),
            "log" s = σ exp(svfit_s).
        nonneg: keep s ≥ 0 by a ReLU; a negative s turns its direction round.
        select: which singular values train: the "top" (the paper's), "bottom" or "random" ones.

    Raises:
        InputError: an option outside its range, or both r and energy.

    Source: Sun et al., 2024, arXiv:2409.05926. `energy` reads the abstract's "99 % of the information"; `nonneg`,
    `select` and the forms of `param` other than "value" are not the paper's.
    """

    r: int | None = None
    energy: float | None = None
    energy_norm: Literal["squared", "nuclear"] = "squared"
    param: Literal["value", "relative", "log"] = "value"
    nonneg: bool = False
    select: Literal["top", "bottom", "random"] = "top"

    default_r: ClassVar[int] = 64
    needs_base: ClassVar[bool] = True
    learning_rates: ClassVar[tuple[float, ...]] = (1e-2, 3e-2, 1e-1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.energy is not None and not 0 < self.energy <= 1:
            raise InputError(f"energy is {self.energy}: give a share in (0, 1]")
        if self.energy is not None and self.r is not None:
            raise InputError(f"energy ({self.energy}) and r ({self.r}) are both given: leave one out")
        if self.energy is not None and self.select != "top":
            raise InputError(
                f"energy with select={self.select!r}: a share is of the top values; give r instead"
            )
        for name, known in (
            ("energy_norm", ("squared", "nuclear")),
            ("param", ("value", "relative", "log")),
            ("select", ("top", "bottom", "random")),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}: give one of {', '.join(known)}")
        self._ranks: dict[str, int] = {}

    def rank(self, shape: LayerShape) -> int:
        if self.energy is None or self.pattern(shape) is not None:
            return super().rank(shape)
        if shape.name not in self._ranks:
            values = torch.linalg.svdvals(shape.matrix().float())
            self._ranks[shape.name] = rank_for_energy(values, self.energy, self.energy_norm)
        return self._ranks[shape.name]

    def check(self, shape: LayerShape) -> None:
        """Nothing that its rank, which the weight may decide, would tell."""

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        return sum(self.rank(shape) for shape in shapes)

    def saved_bytes(self, shapes: Sequence[LayerShape]) -> int:
        basis = sum(self.rank(s) * (s.in_features + s.out_features + 1) for s in shapes)
        return 4 * (self.trainable_parameters(shapes) + self.save_basis * basis)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "rank_pattern": {**(self.rank_pattern or {}), **self._ranks} or None}

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """PEFT's hook for options that are read: before 0.2 the ranks that ``energy`` gave had a name of their own."""
        ranks = kwargs.pop("energy_ranks", None)
        return {**kwargs, **({"rank_pattern": ranks} if ranks else {})}

    def build(self, weight: Float[Tensor, "out in"], layer: LayerContext) -> SVFit:
        return SVFit(weight, layer, self)


class SVFit(DiagonalAdapter):
    """ΔW = U_r diag(s(svfit_s) − σ_r) V_rᵀ with ``svfit_s (r)`` trained."""

    svfit_U: Tensor
    svfit_Vh: Tensor
    svfit_s0: Tensor

    def __init__(self, weight: Float[Tensor, "out in"], layer: LayerContext, config: SVFitConfig) -> None:
        super().__init__(layer)
        self.param, self.nonneg = config.param, config.nonneg
        leading = config.select == "top" and config.energy is None
        r = config.rank(layer.shape) if leading else layer.shape.max_rank
        u, s, vh, _ = frozen_svd(weight, r, shared=not config.save_basis)
        if config.energy is not None and config.pattern(layer.shape) is None:
            config._ranks[layer.shape.name] = rank_for_energy(s, config.energy, config.energy_norm)
        r, falling = config.rank(layer.shape), torch.arange(s.numel())
        if r < s.numel():
            order = {
                "top": falling,
                "bottom": falling.flip(0),
                "random": torch.randperm(s.numel(), generator=layer.generator("select")),
            }[config.select]
            chosen = order[:r].sort().values.to(s.device)
            u, s, vh = (own(t, s.dtype, s.device) for t in (u[:, chosen], s[chosen], vh[chosen]))
        for name, value in {"svfit_U": u, "svfit_Vh": vh, "svfit_s0": s}.items():
            self.register_buffer(name, value, persistent=config.save_basis)
        self.svfit_s = nn.Parameter(torch.zeros_like(s))

    def basis(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        return self.svfit_Vh, self.svfit_U

    def decomposition(self) -> tuple[Float[Tensor, "k in"], Float[Tensor, " k"], Float[Tensor, "out k"]]:
        return self.svfit_Vh, self.svfit_s0, self.svfit_U

    def diagonal(self) -> Float[Tensor, " r"]:
        change: Tensor = self.svfit_s
        if self.param != "value":
            change = self.svfit_s0 * (self.svfit_s if self.param == "relative" else self.svfit_s.expm1())
        return (self.svfit_s0 + change).relu() - self.svfit_s0 if self.nonneg else change

    def singular_values(self) -> Float[Tensor, " r"]:
        """The trained s = σ_r + diag(U_rᵀ ΔW V_r)."""
        return self.svfit_s0 + self.diagonal()
