"""SaRA's schedule: the nuclear norm of the chosen weights as a penalty, and a second choice on the way.

    each step:            ∇ += λ (U Vᵀ)[M] for one weight, drawn at random, with P ⊙ M = U Σ Vᵀ
    after step T₁:        M₂ = M ∧ [|P| < θ]; what has grown beyond θ keeps its value and trains no more

Source: Hu et al., 2025, arXiv:2409.06633.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eckart.adapters import Adapter
from eckart.adapters.sara import SaRA
from eckart.errors import InputError
from eckart.training._base import Rule, register_rule

_LEAST_SIDE = 64
_LEAST_CHOSEN = 100


@register_rule(
    "sara-selection",
    title="SaRA's schedule",
    paper="Hu et al., 2025",
    arxiv="2409.06633",
    trains="nothing: it shapes gradients and stops weights that have grown",
    saves="which weights still train, and the state of its draws",
    knob="lambda_rank",
)
@dataclass
class SaRASelection(Rule):
    """Keeps SaRA's chosen weights of low rank, and chooses again among them.

    Lifecycle:
        attach       all layers are SaRA's
        before_step  the penalty's gradient is added to one weight; what trains no more has its gradient set to zero
        after_step   what trains no more is put back; after step T₁ the second choice

    Args:
        threshold: θ of the second choice; the largest weight chosen at first when None.
        lambda_rank: λ of the nuclear norm; 0 leaves it out.
        progressive_step: T₁; half of the training when None, 0 never chooses again.
        reset_state: forget the optimiser's state of the trained tensors at the second choice.
        seed: of the draws.

    Raises:
        InputError: an option outside its range.

    Source: Hu et al., 2025, arXiv:2409.06633.
    """

    threshold: float | None = None
    lambda_rank: float = 5e-4
    progressive_step: int | None = None
    reset_state: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and not self.threshold > 0:
            raise InputError(f"threshold is {self.threshold}: give a number above 0")
        if not 0 <= self.lambda_rank < float("inf"):
            raise InputError(f"lambda_rank is {self.lambda_rank}: give a number of at least 0")
        if self.progressive_step is not None and self.progressive_step < 0:
            raise InputError(
                f"progressive_step is {self.progressive_step}: give 0 for never, or the number of a step"
            )

    @classmethod
    def suits(cls, adapter: Adapter) -> str:
        return "" if isinstance(adapter, SaRA) else "it has no chosen weights; attach it to sara"

    def begin(self, steps: int | None) -> None:
        """All chosen weights train."""
        if self.progressive_step is None and steps is None:
            raise InputError(
                "steps is not given: give progressive_step, or the optimiser steps of the whole training"
            )
        self.turn = (steps or 0) // 2 if self.progressive_step is None else self.progressive_step
        if steps is not None and self.turn > steps:
            raise InputError(
                f"progressive_step is {self.turn}, beyond the {steps} steps of the training: lower it"
            )
        self.layers = {layer: cast(SaRA, adapter) for layer, _, _, adapter in self.adapters}
        self.trained = {
            f"{layer}.{name}": adapter.get_parameter(name)
            for layer, adapter in self.layers.items()
            for name in adapter.names
        }
        self.active: dict[str, Bool[Tensor, " chosen"]] = {
            name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in self.trained.items()
        }
        self.frozen: dict[str, Tensor] = {}
        self._count()
        starts = [
            float(adapter.get_buffer(f"{name}_start").abs().max())
            for adapter in self.layers.values()
            for name in adapter.names
            if adapter.get_parameter(name).numel()
        ]
        self.bound = max(starts) if self.threshold is None else self.threshold
        self.generator = torch.Generator().manual_seed(self.seed)

    def chosen_matrix(self, layer: str) -> Float[Tensor, "out in"]:
        """P ⊙ M, the weights of a layer that train, zero elsewhere."""
        adapter = self.layers[layer]
        parameter, shape = adapter.sara_learn.detach(), adapter.layer.shape
        values = (parameter * self.active[f"{layer}.sara_learn"]).to(
            torch.promote_types(parameter.dtype, torch.float32)
        )
        flat = values.new_zeros(shape.out_features * shape.in_features)
        flat[adapter.get_buffer("sara_learn_index").long()] = values
        return flat.view(shape.out_features, shape.in_features)

    def before_step(self) -> None:
        """The penalty, and nothing for what trains no more."""
        if self.lambda_rank:
            self._add_penalty()
        for name, parameter in self.trained.items():
            if parameter.grad is not None and self.training[name] < parameter.numel():
                parameter.grad *= self.active[name]
                self.frozen[name] = parameter.detach().clone()

    def _count(self) -> None:
        """How many weights of each tensor still train, read once for all steps until the next choice."""
        self.training = {name: int(active.sum()) for name, active in self.active.items()}

    def _add_penalty(self) -> None:
        eligible = [
            layer
            for layer, adapter in self.layers.items()
            if adapter.layer.shape.max_rank > _LEAST_SIDE
            and self.training[f"{layer}.sara_learn"] > _LEAST_CHOSEN
            and adapter.sara_learn.grad is not None
        ]
        if not eligible:
            return
        layer = eligible[int(torch.randint(len(eligible), (), generator=self.generator))]
        parameter = self.layers[layer].sara_learn
        u, s, vh = torch.linalg.svd(self.chosen_matrix(layer), full_matrices=False)
        kept = s > s[0] * torch.finfo(s.dtype).eps * max(u.shape[0], vh.shape[1])
        slope = ((u * kept) @ vh).flatten()[self.layers[layer].get_buffer("sara_learn_index").long()]
        assert parameter.grad is not None
        parameter.grad.add_(
            (slope * self.active[f"{layer}.sara_learn"]).to(parameter.grad), alpha=self.lambda_rank
        )

    def after_step(self) -> None:
        """Put back what trains no more; the second choice at its step."""
        with torch.no_grad():
            for name, values in self.frozen.items():
                self.trained[name].copy_(torch.where(self.active[name], self.trained[name], values))
        self.frozen = {}
        if self.turn and self.step == self.turn:
            self.select_again()

    def select_again(self) -> None:
        """M₂ = M ∧ [|P| < θ]."""
        for name, parameter in self.trained.items():
            self.active[name] &= parameter.detach().abs() < self.bound
            if self.reset_state:
                self.optimizer.state.pop(parameter, None)
        self._count()

    def state_dict(self) -> dict[str, Tensor]:
        """Which weights still train, θ, and the generator."""
        bound = torch.tensor(self.bound, dtype=torch.float64)
        return {**self.active, "bound": bound, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self.state_dict().items():
            if name not in state or state[name].shape != value.shape:
                raise InputError(
                    f"the state of {self.slug} does not fit: {name} is missing or of another shape"
                )
        super().load_state_dict(
            {name: value for name, value in state.items() if name not in self.state_dict()}
        )
        for name, value in self.active.items():
            value.copy_(state[name])
        self._count()
        self.bound = float(state["bound"])
        self.generator.set_state(state["generator"].cpu())
