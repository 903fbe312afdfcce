"""SNELL: a kernel of two thin factors, of full rank, of which only the largest entries are kept.

    K[i, j] = Σ_p c_p ‖O_p[i] − E_p[j]‖₂,  c = (0.1, −0.1)          ΔW = K ⊙ m(|K|)

    in_qs (2, in, r/2): E   out_qs (2, out, r/2): O
    m(|K|) = |K| ("square"), |K| − t ("soft") or 1 ("hard") where |K| > t, else 0; t zeroes the share `sparsity`

Source: Shen et al., "Expanding Sparse Tuning for Low Memory Usage", 2024, arXiv:2411.01800.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

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
    "snell",
    title="SNELL",
    paper="Shen et al., 2024",
    arxiv="2411.01800",
    trains="two factors, merged by a kernel and sparsified",
    saves="r (in + out) numbers per layer",
)
@dataclass
class SNELLConfig(AdapterConfig):
    """SNELL: a sparse full-rank update from two thin factors, ΔW = K ⊙ m(|K|).

    Args:
        r: numbers per row of the factors, a multiple of the number of distances, at most ``min(out, in)``.
        sparsity: share of ΔW set to zero, in [0, 1). At 0, ΔW = K ("KLoRA") whatever ``sparsify`` is.
        sparsify: "square" (the authors' code), "soft" (the paper's equation) or "hard" (a plain mask).
        detach: hold m(|K|) constant in the backward pass, as the authors' code does.
        kernel: "piecewise" (the paper's choice), "linear" o·e (LoRA's product), "sigmoid" α / (1 + exp(−β o·e)) + γ or
            "rbf" α exp(−β ‖o − e‖²) + γ, with α, β, γ trained.
        coeff: the constants c_p of the piecewise kernel, one for each distance it sums.
        norm_p: order of the norm in the piecewise kernel.

    Raises:
        InputError: an option outside its range.

    Source: Shen et al., 2024, arXiv:2411.01800.
    """

    r: int | None = None
    sparsity: float = 0.9
    sparsify: Sparsify = "square"
    detach: bool = True
    kernel: Literal["piecewise", "linear", "sigmoid", "rbf"] = "piecewise"
    coeff: list[float] = field(default_factory=lambda: [0.1, -0.1])
    norm_p: float = 2.0

    zero_at_start: ClassVar[bool] = False
    exact_gradient: ClassVar[Mapping[str, Any]] = {"detach": False}
    learning_rates: ClassVar[tuple[float, ...]] = (1e-2, 3e-2, 1e-1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sparsity < 1:
            raise InputError(f"sparsity is {self.sparsity}: give the share of entries set to zero, in [0, 1)")
        if self.sparsify not in ("square", "soft", "hard"):
            raise InputError(f"sparsify is {self.sparsify!r}: give 'square', 'soft' or 'hard'")
        if self.kernel not in ("piecewise", "linear", "sigmoid", "rbf"):
            raise InputError(f"kernel is {self.kernel!r}: give 'piecewise', 'linear', 'sigmoid' or 'rbf'")
        self.coeff = [float(c) for c in self.coeff]
        if not self.coeff:
            raise InputError("coeff is empty: give one number for each distance, such as [0.1, -0.1]")
        if not self.norm_p >= 1:
            raise InputError(f"norm_p is {self.norm_p}: give a number of at least 1")
        if self.r is not None and self.r % self.parts:
            raise InputError(
                f"r is {self.r}: give a multiple of {self.parts}, the number of distances in coeff"
            )

    @property
    def parts(self) -> int:
        """Into how many pieces a row of the factors is cut."""
        return len(self.coeff) if self.kernel == "piecewise" else 1

    def rank(self, shape: LayerShape) -> int:
        return max(super().rank(shape) // self.parts, 1) * self.parts

    def knob_values(self, shapes: Sequence[LayerShape]) -> Iterable[int]:
        return range(self.parts, max(self.parts, *(shape.max_rank for shape in shapes)) + 1, self.parts)

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        shaping = 3 * len(shapes) if self.kernel in ("sigmoid", "rbf") else 0
        return shaping + sum(self.rank(s) * (s.in_features + s.out_features) for s in shapes)

    def build(self, weight: Float[Tensor, "out in"], layer: LayerContext) -> SNELL:
        return SNELL(weight, layer, self)


class SNELL(Adapter):
    """ΔW = K ⊙ m(|K|) with ``in_qs (p, in, r/p)`` and ``out_qs (p, out, r/p)`` trained."""

    recompute = True
    in_qs: nn.Parameter
    out_qs: nn.Parameter
    alpha: nn.Parameter
    beta: nn.Parameter
    gamma: nn.Parameter

    def __init__(self, weight: Float[Tensor, "out in"], layer: LayerContext, config: SNELLConfig) -> None:
        super().__init__(layer)
        self.kind, self.sparsity, self.how = config.kernel, config.sparsity, config.sparsify
        self.coeff, self.detach, self.norm_p = config.coeff, config.detach, float(config.norm_p)
        dtype, parts = torch.promote_types(weight.dtype, torch.float32), config.parts
        width = config.rank(layer.shape) // parts
        for name, rows in (("in_qs", layer.shape.in_features), ("out_qs", layer.shape.out_features)):
            bound = 1 / math.sqrt(rows * width)
            value = torch.empty(parts, rows, width).uniform_(-bound, bound, generator=layer.generator(name))
            setattr(self, name, nn.Parameter(value.to(weight.device, dtype)))
        if config.kernel in ("sigmoid", "rbf"):
            start = {"alpha": 1.0, "beta": 1.0, "gamma": -0.5 if config.kernel == "sigmoid" else -1.0}
            for name, number in start.items():
                setattr(self, name, nn.Parameter(torch.full((1,), number, dtype=dtype, device=weight.device)))

    def delta_weight(self) -> Float[Tensor, "out in"]:
        wide = torch.promote_types(self.dtype, torch.float32)
        outer, inner = self.out_qs.to(wide), self.in_qs.to(wide)
        if self.kind == "piecewise":
            delta = sparse_piecewise_kernel(
                outer, inner, self.coeff, self.sparsity, self.how, detach=self.detach, norm=self.norm_p
            )
            return delta.to(self.dtype)
        with torch.autocast(outer.device.type, enabled=False):
            kernel = self._smooth_kernel(outer[0], inner[0])
        if self.sparsity:
            size = kernel.abs()
            factor = multiplier(size, threshold(size.detach(), self.sparsity, self.how), self.how)
            kernel = kernel * (factor.detach() if self.detach else factor)
        return kernel.to(self.dtype)

    def folded(
        self,
        x: Float[Tensor, "tokens in"],
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        scaling: float,
    ) -> Tensor | None:
        if self.kind != "piecewise" or self.dtype != x.dtype:
            return None
        form = KernelForm(self.coeff, self.sparsity, self.how, self.detach, self.norm_p)
        return kernel_linear(x, weight, bias, self.out_qs, self.in_qs, form, scaling)

    def randomize(self) -> None:
        """As for every method, but wide: what is small, squaring makes vanish."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter))

    def _smooth_kernel(self, o: Float[Tensor, "out r"], e: Float[Tensor, "in r"]) -> Float[Tensor, "out in"]:
        product = o @ e.t()
        if self.kind == "linear":
            return product
        if self.kind == "sigmoid":
            return self.alpha * (self.beta * product).sigmoid() + self.gamma
        squares = o.square().sum(1, keepdim=True) + e.square().sum(1) - 2 * product
        return self.alpha * (-self.beta * squares).exp() + self.gamma
