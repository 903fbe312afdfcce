"""LoRA-GGPO: every training step sees the weight with Gaussian noise, row by row as large as weight and gradient say.

    ε_i ~ N(0, σ_i² I),   σ_i² = (σ²/in) · (‖W'_i‖² + β ‖∇_i‖²),   W' = W + ΔW
    ∇ ≈ scale · (∂B A + B ∂A), from the gradients of the previous step

Source: Chang et al., 2025, arXiv:2502.14538v1 (equations 6 to 8). Version 2 of the paper is another method, LoRA-MGPO.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.adapters import AdaptedWeight, Adapter
from eckart.errors import InputError
from eckart.linalg.random import counter_key
from eckart.training._base import Rule, register_rule
from eckart.training._gradients import listening, product_rule, row_squares, trains_its_factors
from eckart.training._places import check_places, free_places, take_places


@register_rule(
    "lora-ggpo",
    title="LoRA-GGPO",
    paper="Chang et al., 2025",
    arxiv="2502.14538",
    trains="nothing of its own: noise on the weight, by row norms of weight and gradient",
    saves="the squared row norms of the last gradients",
    knob="sigma",
)
@dataclass
class LoRAGGPO(Rule):
    """LoRA-GGPO: train at a randomly perturbed weight, for flat minima without a second pass.

    Lifecycle:
        before_step  the row norms of the gradient are taken from the gradients of A and B
        after_step   from the first step on, each layer has a companion, which adds ε while training
        forward      ε is drawn from (seed, layer, step): the same in every micro-batch and when recomputed
        detach       the companions are taken out

    Args:
        sigma: σ, the noise relative to the row norm.
        beta: β, the weight of the gradient's squared row norm.
        grad_norm: "factored" estimates the gradient from those of A and B, "exact" takes the true one.
        ema: smoothing of the gradient's squared row norms, in [0, 1).
        form: "paper", or "kohya" for std_i = (σ ŵ_i + β ‖∇_i‖²)/√out with ŵ_i² = (mean row norm of W)² + ‖(BA)_i‖².
        warm_up: steps over which σ rises from 0.
        seed: of the noise.

    Raises:
        InputError: an option outside its range.

    Source: Chang et al., 2025, arXiv:2502.14538v1.
    """

    sigma: float = 0.03
    beta: float = 0.01
    grad_norm: Literal["factored", "exact"] = "factored"
    ema: float = 0.0
    form: Literal["paper", "kohya"] = "paper"
    warm_up: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sigma", "beta", "warm_up"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: give a number of at least 0")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema is {self.ema}: give a number in [0, 1)")
        for name, known in (("grad_norm", ("factored", "exact")), ("form", ("paper", "kohya"))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}: give {known[0]!r} or {known[1]!r}")
        self.noises: dict[str, Noise] = {}

    @classmethod
    def suits(cls, adapter: Adapter) -> str:
        return "" if trains_its_factors(adapter) else "its factors are not trained themselves"

    def begin(self, steps: int | None) -> None:
        if steps is not None and self.warm_up > steps:
            raise InputError(
                f"warm_up is {self.warm_up}, longer than the training of {steps} steps: lower it"
            )
        check_places(self)
        self.noises = {name: Noise(self, name, layer, adapter) for name, layer, _, adapter in self.adapters}
        take_places(self)
        if self.grad_norm == "exact":
            self._put_in()

    def end(self) -> None:
        free_places(self)

    def before_step(self) -> None:
        for noise in self.noises.values():
            noise.take_gradient()

    def after_step(self) -> None:
        if self.step == 1:
            self._put_in()

    def _put_in(self) -> None:
        for name, layer, key, _ in self.adapters:
            layer.companions[key] = self.noises[name]

    def normal(self, layer: str, like: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The standard normal numbers of this step."""
        generator = torch.Generator(like.device).manual_seed(counter_key("ggpo", self.seed, layer, self.step))
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)

    def state_dict(self) -> dict[str, Tensor]:
        return {
            n: noise.gradient_squares
            for n, noise in self.noises.items()
            if noise.gradient_squares is not None
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state and state.keys() != self.noises.keys():
            raise InputError(
                f"the state of {self.slug} is of other layers, such as {min(state)}: resume the same model"
            )
        for name, squares in state.items():
            self.noises[name].gradient_squares = squares.to(self.noises[name].base_squares)
        if state:
            self._put_in()


class Noise:
    """The companion of one layer: ε, drawn anew from (seed, layer, step) each time it is asked for."""

    def __init__(self, rule: LoRAGGPO, name: str, layer: AdaptedWeight, adapter: Any) -> None:
        self.rule, self.name, self.layer, self.adapter = rule, name, layer, adapter
        self.gradient_squares: Float[Tensor, " out"] | None = None
        self.heard: Float[Tensor, " out"] | None = None
        self._std: tuple[int, Tensor] | None = None
        weight = layer.frozen().detach()
        self.base_squares = weight.to(torch.promote_types(weight.dtype, torch.float32)).square().sum(1)

    def take_gradient(self) -> None:
        """Squared row norms of the gradient, before the step."""
        a, b = self.adapter.factors()
        if self.rule.grad_norm == "exact":
            squares, self.heard = self.heard, None
        else:
            squares = None if a.grad is None else row_squares(*product_rule(self.adapter, a.grad, b.grad))
        if squares is None:
            return
        before, keep = self.gradient_squares, self.rule.ema
        self.gradient_squares = squares if before is None else keep * before + (1 - keep) * squares

    @torch.no_grad()
    def weight_squares(self) -> Float[Tensor, " out"]:
        """‖W'_i‖² = ‖W_i‖² + 2 scale ⟨(W Aᵀ)_i, B_i⟩ + scale² B_i A Aᵀ B_iᵀ."""
        a, b = self.adapter.factors()
        wide, scale = self.base_squares.dtype, self.adapter.scale
        a, b = self.adapter._active(a, 0).to(wide), b.to(wide)
        cross = ((self.layer.frozen().detach().to(wide) @ a.t()) * b).sum(1)
        squares: Tensor = self.base_squares + 2 * scale * cross + scale**2 * row_squares(b, a)
        return squares.clamp(min=0)

    @torch.no_grad()
    def std(self) -> Float[Tensor, " out"]:
        """The standard deviation of each row of ε in this step; 0 while no gradient is known."""
        rule, shape = self.rule, self.layer.shape
        if self.gradient_squares is None:
            return torch.zeros_like(self.base_squares)
        sigma = rule.sigma * (min(1.0, rule.step / rule.warm_up) if rule.warm_up else 1.0)
        if rule.form == "paper":
            squares = self.weight_squares() + rule.beta * self.gradient_squares
            return sigma * (squares / shape.in_features).sqrt()
        a, b = (factor.to(self.base_squares.dtype) for factor in self.adapter.factors())
        norms = ((self.mean_row_norm() ** 2).to(b.dtype) + row_squares(b, a)).sqrt()
        return (sigma * norms + rule.beta * self.gradient_squares) / math.sqrt(shape.out_features)

    def mean_row_norm(self) -> Float[Tensor, ""]:
        """w̄ of the form "kohya", over at most 1000 rows, in float32."""
        rows = torch.linspace(0, len(self.base_squares) - 1, min(len(self.base_squares), 1000)).long()
        return self.base_squares[rows.to(self.base_squares.device)].sqrt().mean().float()

    def delta_weight(self) -> Float[Tensor, "out in"]:
        """ε."""
        weight = self.layer.frozen().detach()
        if self._std is None or self._std[0] != self.rule.step:
            self._std = self.rule.step, self.std()
        like = weight.new_empty(0).to(self.base_squares.dtype).new_empty(weight.shape)
        if self.gradient_squares is None:
            noise = torch.zeros_like(like)
        else:
            noise = self.rule.normal(self.name, like).mul_(self._std[1].unsqueeze(1))
        if self.rule.grad_norm == "exact":
            return noise + listening((len(weight), weight.shape[1]), like, self._hear)
        return noise

    def _hear(self, gradient: Tensor) -> None:
        squares = gradient.detach().square().sum(1)
        self.heard = squares if self.heard is None else self.heard + squares
