"""ALLoRA: the gradient of each output neuron's adapter row, divided by the root of that row's norm.

    s(v) = 1 / √(‖v‖₂ + 1/η²)            v: a row of ΔW (or of a factor); s(0) = η, and s falls as the row grows
    ∂B' = S ∂B,   ∂A' = scale · Bᵀ S G   with S = diag(s) and G = ∂L/∂ΔW; the layer's input keeps its exact gradient

Source: Huang & Balestriero, 2024, arXiv:2410.09692.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.adapters import Adapter, LowRankAdapter
from eckart.errors import InputError
from eckart.training._base import Rule, register_rule
from eckart.training._steps import StepFactors

Target = Literal["output_delta", "b_row", "b_row_delta", "both_rows", "output"]
_TARGETS = ("output_delta", "b_row", "b_row_delta", "both_rows", "output")


@register_rule(
    "allora",
    title="ALLoRA",
    paper="Huang & Balestriero, 2024",
    arxiv="2410.09692",
    trains="the gradient (or the step) of each adapter row, by its norm",
    saves="nothing: the coefficient follows from the weights",
    knob="eta",
)
@dataclass
class ALLoRA(Rule):
    """ALLoRA: an adaptive learning rate for each output row in place of dropout and scaling, s = 1/√(‖ΔW_i‖ + 1/η²).

    Lifecycle:
        attach       a seam is put between each adapter and its layer (``mode="grad"`` with an output target)
        backward     the seam multiplies the gradient of row i by s_i
        before_step  the other targets multiply the gradients now; ``mode="update"`` remembers the weights
        after_step   ``mode="update"`` multiplies the step that was taken
        detach       the seams are taken out

    Args:
        eta: η, the factor of a row that is still zero.
        target: which row gives s, and what it multiplies: "output_delta" (row of ΔW; the gradients of A and B),
            "b_row_delta" (row of ΔW; B alone), "b_row" (row of B; B alone), "both_rows" (every factor by its own rows)
            or "output" (the norm of the adapter's output for each token; A and B).
        mode: "grad" multiplies gradients, as the paper has it; "update" the optimiser's step, which acts under Adam too
            (with "output_delta" on B).

    Raises:
        InputError: an option outside its range.

    Source: Huang & Balestriero, 2024, arXiv:2410.09692.
    """

    eta: float = 2.0
    target: Target = "output_delta"
    mode: Literal["grad", "update"] = "grad"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.eta < float("inf"):
            raise InputError(f"eta is {self.eta}: give a positive number, such as 2")
        if self.target not in _TARGETS:
            raise InputError(f"target is {self.target!r}: give one of {', '.join(_TARGETS)}")
        if self.mode not in ("grad", "update"):
            raise InputError(f"mode is {self.mode!r}: give 'grad' or 'update'")
        if self.target == "output" and self.mode == "update":
            raise InputError("target 'output' with mode 'update': a token has no step; use mode='grad'")
        self._steps = StepFactors()

    @classmethod
    def suits(cls, adapter: Adapter) -> str:
        return "" if isinstance(adapter, LowRankAdapter) else "it is no product of two factors"

    def begin(self, steps: int | None) -> None:
        by_seam = self.mode == "grad" and self.target in ("output_delta", "output")
        for name, layer, key, adapter in self.adapters:
            if layer.configs[key].dropout:
                raise InputError(
                    f"layer {name} has dropout {layer.configs[key].dropout}, which ALLoRA stands in for: use dropout=0"
                )
            if by_seam and key in layer.seams:
                raise InputError(f"layer {name} has a seam already, of another rule: detach that first")
            if self.target == "output" and layer.configs[key].route != "factored":
                raise InputError(f"target 'output' needs the branch of layer {name}: use route='factored'")
            if not by_seam and not self._scaled(adapter):
                raise InputError(
                    f"target {self.target!r} needs a trained factor B, which layer {name} has not"
                )
        if by_seam:
            for _, layer, key, _ in self.adapters:
                layer.seams[key] = self

    def end(self) -> None:
        for _, layer, key, _ in self.adapters:
            if layer.seams.get(key) is self:
                del layer.seams[key]

    def before_step(self) -> None:
        if self.mode == "grad" and self.target in ("output_delta", "output"):
            return
        for *_, adapter in self.adapters:
            for parameter in self._scaled(adapter):
                if parameter.grad is None:
                    continue
                factor = self._factor(adapter, parameter)
                if self.mode == "update":
                    self._steps.hold(parameter, factor)
                else:
                    parameter.grad.mul_(factor.to(parameter.grad.dtype))

    def after_step(self) -> None:
        self._steps.release()

    def _scaled(self, adapter: Any) -> list[nn.Parameter]:
        """The parameters whose rows are scaled one by one."""
        if self.target == "both_rows":
            return [parameter for parameter in adapter.parameters() if parameter.dim() == 2]
        b = adapter.factors()[1]
        return [b] if isinstance(b, nn.Parameter) else []

    def _factor(self, adapter: Adapter, parameter: nn.Parameter) -> Float[Tensor, "rows 1"]:
        by_delta = self.target in ("output_delta", "b_row_delta")
        return self.coefficient(row_norms(adapter) if by_delta else _norms(parameter)).unsqueeze(1)

    def coefficients(self, adapter: LowRankAdapter) -> Float[Tensor, " out"]:
        """s of each output neuron, at the current weights; by its row of B with "b_row" and "both_rows"."""
        by_b = self.target in ("b_row", "both_rows")
        return self.coefficient(_norms(adapter.factors()[1]) if by_b else row_norms(adapter))

    def coefficient(self, norms: Tensor) -> Tensor:
        """s = 1/√(norm + 1/η²)."""
        return (norms + self.eta**-2).rsqrt()

    def rows(self, adapter: Adapter) -> Float[Tensor, " out"] | None:
        """s of each row of ΔW; None where it differs from token to token."""
        return None if self.target == "output" else self.coefficient(row_norms(adapter))

    def branch(self, adapter: Adapter, output: Tensor) -> Tensor:
        """The adapter's output, whose gradient comes back times s."""
        channels = adapter.layer.op.channels
        if self.target == "output":
            wide = torch.promote_types(output.dtype, torch.float32)
            norms = torch.linalg.vector_norm(output.detach().to(wide), dim=channels, keepdim=True)
            return _scaled_gradient(output, self.coefficient(norms))
        s = self.coefficient(row_norms(adapter))
        return _scaled_gradient(
            output, s.view(-1, *(1 for _ in range(output.dim() - 2))) if channels == 1 else s
        )

    def delta(self, adapter: Adapter, delta: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """ΔW, the rows of whose gradient come back times s."""
        return _scaled_gradient(delta, self.coefficient(row_norms(adapter)).unsqueeze(1))


@torch.no_grad()
def row_norms(adapter: Any) -> Float[Tensor, " out"]:
    """‖ΔW_i‖ of every row, from the Gram matrix of A: ‖ΔW_i‖² = scale² · B_i (A Aᵀ) B_iᵀ."""
    a, b = adapter.factors()
    wide = torch.promote_types(a.dtype, torch.float32)
    a, b = adapter._active(a, 0).to(wide), b.to(wide)
    squares = ((b @ (a @ a.t())) * b).sum(1)
    norms: Tensor = abs(adapter.scale) * squares.clamp(min=0).sqrt()
    return norms


@torch.no_grad()
def _norms(matrix: Tensor) -> Float[Tensor, " rows"]:
    wide = torch.promote_types(matrix.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(matrix.detach().to(wide), dim=1)
    return norms


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(factors)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (factors,) = ctx.saved_tensors
        return gradient * factors.to(gradient.dtype), None


def _scaled_gradient(value: Tensor, factors: Tensor) -> Tensor:
    scaled: Tensor = _ScaledGradient.apply(value, factors)  # type: ignore[no-untyped-call]
    return scaled
