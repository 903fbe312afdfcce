"""IncreLoRA: ranks grow, a few directions at a time, in the modules whose update matters most.

    S = Σ |ΔW ∘ G| / √(out · in),   G = ∂L/∂ΔW
    Ī ← β₁ Ī + (1 − β₁) S           Ū ← β₂ Ū + (1 − β₂) |S − Ī|           importance = Ī · Ū

Each module trains ``incre_rank_num`` directions ahead of their use (advance learning): they are held at E = 1e-5 until
they are promoted. Source: Zhang et al., 2023, arXiv:2308.12043, and the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.adapters import AdaptedWeight, Adapter
from eckart.adapters.lora_core import CoreLoRA
from eckart.errors import InputError
from eckart.training._base import register_rule
from eckart.training._gradients import listening
from eckart.training._growth import GrowthRule
from eckart.training._places import check_places, free_places, take_places

RESERVE = 1e-5
"""E of a direction in reserve."""


@register_rule(
    "increlora",
    title="IncreLoRA",
    paper="Zhang et al., 2023",
    arxiv="2308.12043",
    trains="the ranks, which grow where |ΔW ∘ G| is large",
    saves="ranks, scores, and when each direction was activated",
    knob="target_rank",
)
@dataclass
class IncreLoRA(GrowthRule):
    """IncreLoRA: start every module at rank 1 and grow where the update matters, until the budget is spent.

    Lifecycle:
        attach       all but ``init_r`` directions of each adapter wait
        backward     in the steps before a growth, each module's score is summed from its weight gradient
        before_step  the orthogonality term; scores are smoothed; when due, the best ``top_h`` modules grow
        after_step   directions that wait are put back, those that are new step as with an optimiser of their own
        detach       what is in reserve no longer counts

    Args:
        target_rank: the sum of ranks to reach; half of what the adapters hold when None.
        init_r: rank of each module at the start.
        incre_rank_num: directions that a module gains at a time, and keeps in reserve.
        init_warmup: steps before the first growth; a tenth of the training when None.
        incre_interval: steps between two growths; such that the last comes after six tenths of the training when None.
        reg_orth_coef: factor of the orthogonality term of A and B.
        strict_budget: never exceed ``target_rank``, whatever ties and steps of several ranks would add.
        rescale_on_growth: multiply E by (R + 1)/R where the scaling α/R falls, so that ΔW does not change.
        warmup: steps over which the rate of new directions rises, to fall to zero at the end; 0 for the common rate.
        top_h: modules that grow at a time.
        beta1: β₁ of the smoothed score.
        beta2: β₂ of its uncertainty.
        score: "importance" as above, or "grad" for the mean of G².
        score_norm: "root" divides by √(out · in), "mean" by out · in.
        score_window: score only in so many steps before each growth; older ones would weigh β₁^window.
        advance_learn: keep directions in reserve; None where the adapter can (lora-core with a diagonal core).

    Raises:
        InputError: an option outside its range.

    Source: Zhang et al., 2023, arXiv:2308.12043.
    """

    top_h: int = 4
    beta1: float = 0.85
    beta2: float = 0.85
    score: Literal["importance", "grad"] = "importance"
    score_norm: Literal["root", "mean"] = "root"
    score_window: int = 32
    advance_learn: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("top_h", "score_window"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: give a whole number of at least 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: give a number in [0, 1)")
        for name, known in (("score", ("importance", "grad")), ("score_norm", ("root", "mean"))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}: give {known[0]!r} or {known[1]!r}")
        self.listeners: list[Listener] = []

    def reserve(self, adapter: Adapter) -> int:
        can = isinstance(adapter, CoreLoRA) and adapter.diagonal
        if self.advance_learn and not can:
            raise InputError(
                "advance_learn is True, and the adapter has no diagonal core: use lora-core, or advance_learn=False"
            )
        return self.incre_rank_num if can and self.advance_learn is not False else 0

    def rounds(self) -> int:
        return math.ceil((self.target - self.total) / (self.incre_rank_num * self.top_h))

    def begin(self, steps: int | None) -> None:
        check_places(self)
        for name, *_, adapter in self.adapters:
            if self.reg_orth_coef and not hasattr(adapter, "lora_A"):
                raise InputError(
                    f"reg_orth_coef needs factors A and B, which layer {name} has not: set it to 0"
                )
        super().begin(steps)
        self.listeners = [Listener(self, layer, adapter) for _, layer, _, adapter in self.adapters]
        device = self.listeners[0].heard.device
        self.exp_avg_ipt, self.exp_avg_unc = torch.zeros(
            2, len(self.modules), dtype=torch.float64, device=device
        )
        self.last = torch.zeros_like(self.exp_avg_ipt)
        take_places(self)
        self._listen()

    def end(self) -> None:
        free_places(self)
        super().end()

    @property
    def scoring(self) -> bool:
        """Whether modules are scored: while they grow, and for good where the budget was overrun, as in the authors'
        code, which then keeps what is in reserve."""
        return self.growing or (not self.strict_budget and self.total > self.target)

    def _listen(self) -> None:
        """Put the listeners in where the coming step is scored, and take them out where it is not."""
        next_growth = max(math.floor(self.first) + 1, self.step)
        next_growth = math.ceil(next_growth / self.interval) * self.interval
        self._stop()
        if self.scoring and next_growth - self.step < self.score_window:
            for (_, layer, key, _), listener in zip(self.adapters, self.listeners, strict=True):
                layer.companions[key] = listener

    def _stop(self) -> None:
        for (_, layer, key, _), listener in zip(self.adapters, self.listeners, strict=bool(self.listeners)):
            if layer.companions.get(key) is listener:
                del layer.companions[key]

    def after_step(self) -> None:
        super().after_step()
        self._listen()

    def grow_when_due(self) -> None:
        for module in self.modules:
            if module.reserve and module.adapter.lora_E.grad is not None:
                module.adapter.lora_E.grad[module.rank :] = 0
        self.threshold = math.nan
        if self.scoring:
            self._score()
        if self.growing:
            self._smooth()
            if self.due():
                importance = (self.exp_avg_ipt * self.exp_avg_unc).tolist()
                for module in self.choose(importance, min(self.top_h, self.target - self.total)):
                    self.grow(module)
            if not self.scoring:
                for module in self.modules:
                    module.show(module.counted)
                    if module.reserve:
                        module.adapter.lora_E.data[module.rank :] = 0
        if self.step == 0:
            self._reserve()

    @torch.no_grad()
    def _reserve(self) -> None:
        """The first directions in reserve, after the first backward pass."""
        for module in self.modules:
            if module.reserve and self.growing:
                new = slice(module.rank, module.rank + module.reserve)
                module.born[new] = 1
                module.adapter.lora_E[new] = RESERVE
                module.show(module.born >= 0)

    def grow(self, module: Any) -> None:
        before = module.rank + module.reserve
        super().grow(module)
        if module.reserve:
            module.adapter.lora_E.data[before : module.rank + module.reserve] = RESERVE

    def _score(self) -> None:
        """The scores of this step, the same in every process."""
        scores = torch.stack([listener.take() for listener in self.listeners]).to(self.exp_avg_ipt)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(scores)
            scores /= torch.distributed.get_world_size()
        self.last = scores

    def _smooth(self) -> None:
        """Into their averages."""
        scores = self.last
        self.exp_avg_ipt = self.beta1 * self.exp_avg_ipt + (1 - self.beta1) * scores
        deviation = (scores - self.exp_avg_ipt).abs()
        self.exp_avg_unc = self.beta2 * self.exp_avg_unc + (1 - self.beta2) * deviation

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"exp_avg_ipt": self.exp_avg_ipt, "exp_avg_unc": self.exp_avg_unc}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if not {"exp_avg_ipt", "exp_avg_unc"} <= state.keys():
            raise InputError(f"the state of {self.slug} has no scores: it is of another rule")
        super().load_state_dict(state)
        self.exp_avg_ipt = state["exp_avg_ipt"].to(self.exp_avg_ipt)
        self.exp_avg_unc = state["exp_avg_unc"].to(self.exp_avg_unc)

    def load(self, path: Any) -> None:
        super().load(path)
        self._listen()


class Listener:
    """A companion of zeros that hears the gradient of the weight and sums up the score of its module."""

    def __init__(self, rule: IncreLoRA, layer: AdaptedWeight, adapter: Adapter) -> None:
        self.rule, self.layer, self.adapter = rule, layer, adapter
        self.heard = torch.zeros(
            (), dtype=torch.promote_types(adapter.dtype, torch.float32), device=adapter.device
        )

    def delta_weight(self) -> Float[Tensor, "out in"]:
        shape = self.layer.shape
        like = torch.empty(0, dtype=self.adapter.dtype, device=self.adapter.device)
        return listening((shape.out_features, shape.in_features), like, self._hear)

    @torch.no_grad()
    def _hear(self, gradient: Float[Tensor, "out in"]) -> None:
        if self.rule.score == "grad":
            total = gradient.square().sum()
        else:
            total = (self.adapter.delta_weight() * gradient).abs().sum()
        size = gradient.numel()
        by_root = self.rule.score == "importance" and self.rule.score_norm == "root"
        self.heard += total / (math.sqrt(size) if by_root else size)

    def take(self) -> Float[Tensor, ""]:
        """What was heard since the last time."""
        heard, self.heard = self.heard, torch.zeros_like(self.heard)
        return heard
