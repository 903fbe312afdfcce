"""SNELLA: SNELL's kernel with a softmax over the outputs and an offset, and a sparsity of its own for each layer.

    D[i, j] = Σ_p c_p ‖O_p[i] − E_p[j]‖₂,  c = (0.1, −0.1)
    P[i, j] = exp(D[i, j]/γ) / Σ_i' exp(D[i', j]/γ)            K = D + α P + β            ΔW = K ⊙ m(|K|)

    in_qs (2, in, r/2): E   out_qs (2, out, r/2): O   alpha, beta, gamma (1)
    m as in SNELL; its threshold follows at every forward from the layer's sparsity s

The training rule `snella-allocation` shares a shrinking number of live weights among the layers. Source: Shen et al.,
2025, arXiv:2510.24037.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.adapters._base import Adapter
from eckart.adapters._config import AdapterConfig
from eckart.adapters._layers import LayerContext, LayerShape
from eckart.adapters._registry import register_adapter
from eckart.errors import InputError
from eckart.linalg.kernel import Sparsify, multiplier, sparse_piecewise_kernel, threshold
from eckart.linalg.kernel_linear import KernelForm, kernel_linear


@register_adapter(
    "snella",
    title="SNELLA",
    paper="Shen et al., 2025",
    arxiv="2510.24037",
    trains="two factors and three numbers, merged by a kernel and sparsified",
    saves="r (in + out) + 3 numbers and the sparsity per layer",
)
@dataclass
class SNELLAConfig(AdapterConfig):
    """SNELLA: a sparse full-rank update from two thin factors, with a softmax in its kernel.

    Args:
        r: numbers per row of the factors, a multiple of the number of distances, at most ``min(out, in)``.
        sparsity: share of ΔW set to zero at the start, in [0, 1).
        sparsify: "square" (the authors' code), "soft" or "hard".
        detach: hold m(|K|) constant in the backward pass, as the authors' code does.
        coeff: the constants c_p, one for each distance.

    Raises:
        InputError: an option outside its range.

    Source: Shen et al., 2025, arXiv:2510.24037.
    """

    r: int | None = None
    sparsity: float = 0.01
    sparsify: Sparsify = "square"
    detach: bool = True
    coeff: list[float] = field(default_factory=lambda: [0.1, -0.1])

    zero_at_start: ClassVar[bool] = False
    exact_gradient: ClassVar[Mapping[str, Any]] = {"detach": False}
    learning_rates: ClassVar[tuple[float, ...]] = (1e-2, 3e-2, 1e-1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sparsity < 1:
            raise InputError(f"sparsity is {self.sparsity}: give the share of entries set to zero, in [0, 1)")
        if self.sparsify not in ("square", "soft", "hard"):
            raise InputError(f"sparsify is {self.sparsify!r}: give 'square', 'soft' or 'hard'")
        self.coeff = [float(c) for c in self.coeff]
        if not self.coeff:
            raise InputError("coeff is empty: give one number for each distance, such as [0.1, -0.1]")
        if self.r is not None and self.r % len(self.coeff):
            raise InputError(
                f"r is {self.r}: give a multiple of {len(self.coeff)}, the number of distances in coeff"
            )

    def rank(self, shape: LayerShape) -> int:
        parts = len(self.coeff)
        return max(super().rank(shape) // parts, 1) * parts

    def knob_values(self, shapes: Sequence[LayerShape]) -> Iterable[int]:
        parts = len(self.coeff)
        return range(parts, max(parts, *(shape.max_rank for shape in shapes)) + 1, parts)

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        """Σ r (in + out) + 3; one less where there is but one output, whose softmax is 1 whatever γ is."""
        numbers = sum(3 - (s.out_features == 1) for s in shapes)
        return numbers + sum(self.rank(s) * (s.in_features + s.out_features) for s in shapes)

    def saved_bytes(self, shapes: Sequence[LayerShape]) -> int:
        """4 for each trained number, and 8 a layer for its sparsity."""
        return 4 * self.trainable_parameters(shapes) + 8 * len(shapes)

    def build(self, weight: Float[Tensor, "out in"], layer: LayerContext) -> SNELLA:
        return SNELLA(weight, layer, self)


class SNELLA(Adapter):
    """ΔW = K ⊙ m(|K|) with ``in_qs``, ``out_qs`` and the three numbers of the kernel trained.

    Attributes:
        sparsity: s, the share of ΔW that is zero; a checkpoint holds it.
    """

    recompute = True
    in_qs: nn.Parameter
    out_qs: nn.Parameter
    alpha: nn.Parameter
    beta: nn.Parameter
    gamma: Tensor

    def __init__(self, weight: Float[Tensor, "out in"], layer: LayerContext, config: SNELLAConfig) -> None:
        super().__init__(layer)
        self.sparsity, self.how, self.detach = float(config.sparsity), config.sparsify, config.detach
        dtype, self.coeff = torch.promote_types(weight.dtype, torch.float32), config.coeff
        width = config.rank(layer.shape) // len(self.coeff)
        for name, rows in (("in_qs", layer.shape.in_features), ("out_qs", layer.shape.out_features)):
            bound = 1 / math.sqrt(rows * width)
            value = torch.empty(len(self.coeff), rows, width).uniform_(
                -bound, bound, generator=layer.generator(name)
            )
            setattr(self, name, nn.Parameter(value.to(weight.device, dtype)))
        for name, number in (("alpha", 1.0), ("beta", 0.0), ("gamma", 1.0)):
            value = torch.full((1,), number, dtype=dtype, device=weight.device)
            if name == "gamma" and layer.shape.out_features == 1:
                self.register_buffer(name, value, persistent=False)
            else:
                self.register_parameter(name, nn.Parameter(value))

    def kernel(self) -> Float[Tensor, "out in"]:
        """K, before anything is set to zero."""
        wide = torch.promote_types(self.dtype, torch.float32)
        distance = sparse_piecewise_kernel(self.out_qs.to(wide), self.in_qs.to(wide), self.coeff, 0.0)
        share = (distance / self.gamma.to(wide)).softmax(0)
        return distance + self.alpha.to(wide) * share + self.beta.to(wide)

    def delta_weight(self) -> Float[Tensor, "out in"]:
        with torch.autocast(self.device.type, enabled=False):
            kernel = self.kernel()
            size = kernel.abs()
            factor = multiplier(size, threshold(size.detach(), self.sparsity, self.how), self.how)
            return (kernel * (factor.detach() if self.detach else factor)).to(self.dtype)

    def folded(
        self,
        x: Float[Tensor, "tokens in"],
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        scaling: float,
    ) -> Tensor | None:
        if self.dtype != x.dtype:
            return None
        form = KernelForm(self.coeff, self.sparsity, self.how, self.detach)
        numbers = self.alpha, self.beta, self.gamma
        return kernel_linear(x, weight, bias, self.out_qs, self.in_qs, form, scaling, numbers)

    def randomize(self) -> None:
        """As for every method, but wide: what is small, squaring makes vanish."""
        with torch.no_grad():
            for parameter in (self.in_qs, self.out_qs):
                parameter.add_(torch.randn_like(parameter))
            self.beta.add_(torch.randn_like(self.beta), alpha=0.1)
            self.alpha.add_(torch.rand_like(self.alpha))
            if "gamma" in self._parameters:
                self.gamma.add_(torch.rand_like(self.gamma))  # a temperature: it stays positive

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}sparsity"] = torch.tensor([self.sparsity], dtype=torch.float64)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        stored = state_dict.pop(f"{prefix}sparsity", None)
        if stored is not None and not stored.is_meta:
            self.sparsity = float(stored.item())
        super()._load_from_state_dict(state_dict, prefix, *args)
