"""LoRA-MGPO: every training step looks ahead along the optimiser's momentum, by a distance that the gradients set.

    D = scale · (v_B A + B v_A),   v: the momenta          ε = −ρ · D/‖D‖_F · min(1/ḡ, 10)
    ḡ ← β ḡ + (1 − β) ‖scale · (∂B A + B ∂A)‖_F            loss and gradients are those at W' + ε

Source: Chang et al., 2025, arXiv:2502.14538v2, and the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.adapters import Adapter, LowRankAdapter
from eckart.errors import InputError
from eckart.training._base import Rule, register_rule
from eckart.training._gradients import product_rule, trains_its_factors
from eckart.training._places import check_places, free_places, take_places
from eckart.training._steps import group_of

_EPSILON = 1e-12


@register_rule(
    "lora-mgpo",
    title="LoRA-MGPO",
    paper="Chang et al., 2025",
    arxiv="2502.14538",
    trains="nothing of its own: a shift of the weight along the momentum",
    saves="one smoothed gradient norm a layer",
    knob="rho",
)
@dataclass
class LoRAMGPO(Rule):
    """LoRA-MGPO: train at a weight shifted along the momentum; the successor of LoRA-GGPO under the same arXiv id.

    Lifecycle:
        attach       each layer has a companion of rank 2r, which is zero until there are momenta
        before_step  ḡ takes up the norm of the gradients
        after_step   ε follows from the new momenta and weights
        detach       the companions are taken out

    Args:
        rho: ρ, the length of ε at ḡ = 1.
        beta: β of ḡ.
        clamp: what 1/ḡ is cut off at.
        mu: None takes the optimiser's momenta (Adam's ``exp_avg``, SGD's ``momentum_buffer``); a number makes the rule
            keep its own, v ← μ v + (1 − μ) ∂.
        ascent: turn ε around, as sharpness-aware minimisation does.

    Raises:
        InputError: an option outside its range.

    Source: Chang et al., 2025, arXiv:2502.14538v2.
    """

    rho: float = 0.05
    beta: float = 0.9
    clamp: float = 10.0
    mu: float | None = None
    ascent: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rho", "clamp"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: give a number of at least 0")
        for name in ("beta", "mu"):
            if (value := getattr(self, name)) is not None and not 0 <= value < 1:
                raise InputError(f"{name} is {value}: give a number in [0, 1)")
        self.shifts: dict[str, Shift] = {}

    @classmethod
    def suits(cls, adapter: Adapter) -> str:
        return "" if trains_its_factors(adapter) else "its factors are not trained themselves"

    def begin(self, steps: int | None) -> None:
        check_places(self)
        for *_, adapter in self.adapters:
            group: Any = group_of(self.optimizer, next(adapter.parameters()))
            if self.mu is None and "betas" not in group and not group.get("momentum"):
                raise InputError("the optimiser keeps no momentum, and mu is None: give mu, such as 0.9")
        self.shifts = {name: Shift(self, adapter) for name, _, _, adapter in self.adapters}
        take_places(self)
        for name, layer, key, _ in self.adapters:
            layer.companions[key] = self.shifts[name]

    def end(self) -> None:
        free_places(self)

    def before_step(self) -> None:
        for shift in self.shifts.values():
            shift.take_gradient()

    def state_dict(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name, shift in self.shifts.items()
            for key, value in (("norm", shift.norm), ("v_A", shift.own.get("A")), ("v_B", shift.own.get("B")))
            if value is not None
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        found = {key.rpartition(".")[0] for key in state}
        if state and found != self.shifts.keys():
            raise InputError(
                f"the state of {self.slug} is of other layers, such as {min(found)}: resume the same model"
            )
        for name in found:
            a = self.shifts[name].owner[0].factors()[0]
            self.shifts[name].norm = state[f"{name}.norm"].to(a.device)
            self.shifts[name].own = {
                k: state[f"{name}.v_{k}"].to(a) for k in "AB" if f"{name}.v_{k}" in state
            }


class Shift(LowRankAdapter):
    """The companion of one layer: ε as the product of two thin factors."""

    def __init__(self, rule: LoRAMGPO, adapter: Any) -> None:
        super().__init__(adapter.layer)
        self.rule, self.owner = rule, (adapter,)  # in a tuple, so that it is no submodule
        self.norm: Float[Tensor, ""] | None = None
        self.own: dict[str, Tensor] = {}
        self._made: tuple[int, tuple[Tensor, Tensor]] | None = None

    @torch.no_grad()
    def take_gradient(self) -> None:
        """Update ḡ, and the momenta where the rule keeps them."""
        adapter = self.owner[0]
        gradients = [factor.grad for factor in adapter.factors()]
        if gradients[0] is None:
            return
        norm = _norm(*product_rule(adapter, *gradients))
        beta, mu = self.rule.beta, self.rule.mu
        self.norm = norm if self.norm is None else beta * self.norm + (1 - beta) * norm
        if mu is not None:
            for letter, gradient in zip("AB", gradients, strict=True):
                before = self.own.get(letter, torch.zeros_like(gradient))
                self.own[letter] = mu * before + (1 - mu) * gradient

    def _momenta(self) -> list[Tensor] | None:
        """Those of A and B; None before the first step."""
        if self.rule.mu is not None:
            return [self.own["A"], self.own["B"]] if self.own else None
        found = []
        for parameter in self.owner[0].factors():
            state = self.rule.optimizer.state.get(parameter, {})
            momentum = state.get("exp_avg", state.get("momentum_buffer"))
            if momentum is None:
                return None
            found.append(momentum)
        return found

    @torch.no_grad()
    def _make(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        momenta, adapter, rule = self._momenta(), self.owner[0], self.rule
        if momenta is None:
            momenta = [torch.zeros_like(factor) for factor in adapter.factors()]
        m, n = product_rule(adapter, *momenta)
        length = _norm(m, n)
        far = 1.0 if self.norm is None else (1 / (self.norm + _EPSILON)).clamp(max=rule.clamp)
        size = torch.where(length > _EPSILON, rule.rho * far / (length + _EPSILON), 0.0)
        return n, (size if rule.ascent else -size) * m

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        if self._made is None or self._made[0] != self.rule.step:
            self._made = self.rule.step, self._make()
        return self._made[1]

    @property
    def factor_rank(self) -> int:
        return 2 * int(self.owner[0].factor_rank)


def _norm(m: Float[Tensor, "out r"], n: Float[Tensor, "r in"]) -> Float[Tensor, ""]:
    """‖m n‖_F = √tr(mᵀm · n nᵀ)."""
    return ((m.t() @ m) * (n @ n.t())).sum().clamp(min=0).sqrt()
