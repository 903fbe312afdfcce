"""SNELLA's allocation: a shrinking number of live weights, shared among the layers by the importance of their factors.

    each step, for both factors θ of a layer:   I = |θ · ∂L/∂θ|
        Ī ← β₁ Ī + (1 − β₁) I        Ū ← β₂ Ū + (1 − β₂) |I − Ī|          q = mean(Ī_E ⊙ Ū_E) + mean(Ī_O ⊙ Ū_O)
    each round t of T:   B(t) = S* + (S₀ − S*) (1 − (t − a)/(T − a − b))³, S₀ before it and S* after
        v_l = min(B q_l / Σ q, n_l), what is over shared out again among the layers with room        s_l = 1 − v_l/n_l

Source: Shen et al., 2025, arXiv:2510.24037.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.adapters import Adapter
from eckart.adapters.snella import SNELLA
from eckart.errors import InputError
from eckart.training._base import Rule, register_rule

_FACTORS = ("in_qs", "out_qs")


@register_rule(
    "snella-allocation",
    title="SNELLA's allocation",
    paper="Shen et al., 2025",
    arxiv="2510.24037",
    trains="nothing: it sets the sparsity of each layer",
    saves="the importance and uncertainty of each factor, and the sparsities",
    knob="target_sparsity",
)
@dataclass
class SNELLAAllocation(Rule):
    """Shares a shrinking number of live weights among the layers of SNELLA.

    Lifecycle:
        attach       all layers are SNELLA's; the first round
        before_step  importance and uncertainty take up the gradients
        after_step   every ``every`` steps a round: the sparsities are set again

    Args:
        target_sparsity: share of all weights that is zero in the end, above that of the start.
        every: optimiser steps of a round; the authors take an epoch.
        initial_warmup: a, rounds in which nothing changes.
        final_warmup: b, last rounds, which keep the number of live weights.
        interval: m, rounds from one allocation to the next.
        beta1: β₁, in [0, 1).
        beta2: β₂, in [0, 1).

    Raises:
        InputError: an option outside its range.

    Source: Shen et al., 2025, arXiv:2510.24037.
    """

    target_sparsity: float = 0.9
    every: int = 1
    initial_warmup: int = 0
    final_warmup: int = 0
    interval: int = 1
    beta1: float = 0.85
    beta2: float = 0.85

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.target_sparsity < 1:
            raise InputError(f"target_sparsity is {self.target_sparsity}: give a share in [0, 1)")
        for name, least in (("every", 1), ("interval", 1), ("initial_warmup", 0), ("final_warmup", 0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} is {getattr(self, name)}: give at least {least}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: give a number in [0, 1)")
        self.scores: Float[Tensor, " layers"] | None = None

    @classmethod
    def suits(cls, adapter: Adapter) -> str:
        return "" if isinstance(adapter, SNELLA) else "it has no sparsity to set; attach it to snella"

    def begin(self, steps: int | None) -> None:
        """Read the start from the layers; all statistics are zero."""
        if steps is None:
            raise InputError(
                "steps is not given: the schedule needs the optimiser steps of the whole training"
            )
        self.rounds = steps // self.every
        if self.rounds <= self.initial_warmup + self.final_warmup:
            raise InputError(
                f"{steps} steps are {self.rounds} rounds of {self.every}, no more than the warm-ups of "
                f"{self.initial_warmup} and {self.final_warmup}: shorten them"
            )
        self.layers = {name: cast(SNELLA, adapter) for name, _, _, adapter in self.adapters}
        shapes = [adapter.layer.shape for adapter in self.layers.values()]
        self.sizes = torch.tensor([s.out_features * s.in_features for s in shapes], dtype=torch.float64)
        shares = torch.tensor([1 - adapter.sparsity for adapter in self.layers.values()], dtype=torch.float64)
        self.most = float((shares * self.sizes).sum())
        self.least = float((1 - self.target_sparsity) * self.sizes.sum())
        if self.least > self.most:
            raise InputError(
                f"target_sparsity is {self.target_sparsity}, below the sparsity of the start, "
                f"{1 - self.most / float(self.sizes.sum()):.3g}: raise it"
            )
        self.statistics = {
            f"{layer}.{factor}.{kind}": torch.zeros_like(getattr(adapter, factor).detach())
            for layer, adapter in self.layers.items()
            for factor in _FACTORS
            for kind in ("importance", "uncertainty")
        }
        self.allocate(0)

    def volume(self, t: int) -> int:
        """B(t), the number of live weights of round t."""
        if t <= self.initial_warmup:
            return int(self.most)
        if t > self.rounds - self.final_warmup:
            return int(self.least)
        passed = (t - self.initial_warmup) / (self.rounds - self.initial_warmup - self.final_warmup)
        return int(self.least + (self.most - self.least) * (1 - passed) ** 3)

    def reallocates(self, t: int) -> bool:
        """Whether round t sets the sparsities."""
        if t <= self.initial_warmup:
            return False
        return t > self.rounds - self.final_warmup or t % self.interval == 0

    def before_step(self) -> None:
        """Ī and Ū take up |θ · ∂L/∂θ|."""
        for layer, adapter in self.layers.items():
            for factor in _FACTORS:
                parameter: Tensor = getattr(adapter, factor)
                if parameter.grad is None:
                    continue
                now = (parameter.detach() * parameter.grad).abs().nan_to_num_(nan=0.0)
                mean = self.statistics[f"{layer}.{factor}.importance"]
                mean.lerp_(now, 1 - self.beta1)
                self.statistics[f"{layer}.{factor}.uncertainty"].lerp_((now - mean).abs_(), 1 - self.beta2)

    def after_step(self) -> None:
        """A round, at the end of its steps."""
        if self.step % self.every == 0 and self.step // self.every < self.rounds:
            self.allocate(self.step // self.every)

    def allocate(self, t: int) -> None:
        """Round t."""
        if not self.reallocates(t):
            return
        products = [
            torch.stack([
                (self.statistics[f"{layer}.{factor}.importance"].double()
                 * self.statistics[f"{layer}.{factor}.uncertainty"].double()).mean()
                for factor in _FACTORS
            ]).sum()
            for layer in self.layers
        ]  # fmt: skip
        scores = torch.stack([product.to(products[0].device) for product in products]).cpu()
        total = scores.sum()
        known = bool(torch.isfinite(total)) and float(total) > 0
        self.scores = scores / total if known else torch.full_like(scores, 1 / len(scores))
        live = share_out(self.volume(t), self.scores, self.sizes)
        for adapter, count, size in zip(
            self.layers.values(), live.tolist(), self.sizes.tolist(), strict=True
        ):
            adapter.sparsity = min(max(1 - count / size, 0.0), 1.0)

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics, the sparsities and the number that the schedule starts from."""
        sparsities = torch.tensor([adapter.sparsity for adapter in self.layers.values()], dtype=torch.float64)
        start = torch.tensor(self.most, dtype=torch.float64)
        return {**self.statistics, "sparsities": sparsities, "start": start}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        expected = self.state_dict()
        for name, value in expected.items():
            if name not in state or state[name].shape != value.shape:
                raise InputError(
                    f"the state of {self.slug} does not fit: {name} is missing or of another shape"
                )
        super().load_state_dict({name: value for name, value in state.items() if name not in expected})
        for name, value in self.statistics.items():
            value.copy_(state[name])
        self.most = float(state["start"])
        for adapter, sparsity in zip(self.layers.values(), state["sparsities"].tolist(), strict=True):
            adapter.sparsity = sparsity


def share_out(
    volume: int, scores: Float[Tensor, " layers"], sizes: Float[Tensor, " layers"]
) -> Float[Tensor, " layers"]:
    """Whole numbers in proportion to the scores, none above its size: what is over goes to those with room.

    Args:
        volume: their sum, at most; rounding down loses less than one for each layer.
        scores: not negative, of sum 1.
        sizes: the most that each can have.
    """
    shares = torch.minimum((volume * scores).floor(), sizes)
    for _ in range(len(sizes) + 1):
        rest, room = volume - float(shares.sum()), shares < sizes
        weight = float(scores[room].sum())
        if rest <= 0 or weight <= 0:
            break
        shares[room] += torch.minimum(rest * scores[room] / weight, sizes[room] - shares[room])
    return (shares + 1e-9).floor()
