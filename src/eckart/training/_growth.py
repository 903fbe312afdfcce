"""What the rules that grow ranks have in common: directions that wait, a schedule, a budget, and an optimiser that
meets a new direction as if it had just been made.

Every adapter holds as many directions as it may ever have; those that wait are masked (`LowRankAdapter.set_active`), so
that they add nothing and have no gradient. A direction that is activated finds empty moments. Adam's bias correction
would be that of the old ones and its first steps up to 6 times too long: its step is multiplied by

    √(1 − β₂ᵏ)/(1 − β₁ᵏ) · (1 − β₁ᵗ)/√(1 − β₂ᵗ)        k: steps since it was activated, t: steps of the optimiser
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.adapters import Adapter, LowRankAdapter
from eckart.adapters.lora_core import CoreLoRA
from eckart.errors import InputError
from eckart.training._base import Rule
from eckart.training._grown import WAITING, Module, bias_correction
from eckart.training._steps import StepFactors, group_of


@dataclass
class GrowthRule(Rule):
    """A rule under which ranks grow from ``init_r`` until their sum is ``target_rank``."""

    claims = "ranks"

    target_rank: int | None = None
    init_r: int = 1
    incre_rank_num: int = 1
    init_warmup: int | None = None
    incre_interval: int | None = None
    reg_orth_coef: float = 0.0
    strict_budget: bool = True
    rescale_on_growth: bool = True
    warmup: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("target_rank", 1), ("init_r", 1), ("incre_rank_num", 1), ("incre_interval", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise InputError(f"{name} is {value}: give a whole number of at least {least}")
        for name in ("init_warmup", "reg_orth_coef", "warmup"):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise InputError(f"{name} is {value}: give a number of at least 0")
        self.modules: list[Module] = []
        self.target, self.first, self.interval, self.steps = 0, 0, 1, 0
        self.threshold = math.nan
        self._factors = StepFactors()

    @classmethod
    def suits(cls, adapter: Adapter) -> str:
        """Directions of its own, which start at zero: otherwise the output would jump."""
        own = isinstance(adapter, LowRankAdapter) and adapter.own_directions
        return "" if own else "it has no directions that start at zero, one apart from the other"

    @property
    def total(self) -> int:
        """The sum of the ranks."""
        return sum(module.rank for module in self.modules)

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each layer."""
        return {module.name: module.rank for module in self.modules}

    @property
    def growing(self) -> bool:
        """Whether the target is still ahead and a layer has room."""
        return self.total < self.target and any(m.rank < m.room for m in self.modules)

    def reserve(self, adapter: Adapter) -> int:
        """How many directions of an adapter are trained ahead of their use."""
        return 0

    def rounds(self) -> int:
        """How often ranks have to grow at least."""
        return math.ceil((self.target - self.total) / self.incre_rank_num)

    def begin(self, steps: int | None) -> None:
        self.modules = []
        for name, _, _, adapter in self.adapters:
            reserve = self.reserve(adapter)
            least = self.init_r + reserve
            assert isinstance(adapter, LowRankAdapter)
            if adapter.factor_rank < least:
                raise InputError(
                    f"layer {name} has {adapter.factor_rank} directions, and the rule starts with {least}: "
                    "give the adapter a higher r"
                )
            self.modules.append(Module(name, adapter, self.init_r, reserve))
        room, least = sum(m.room for m in self.modules), len(self.modules) * self.init_r
        self.target = max(least, room // 2) if self.target_rank is None else self.target_rank
        if not least <= self.target <= room:
            raise InputError(
                f"target_rank is {self.target}: give a sum of ranks from {least} (where {len(self.modules)} layers "
                f"start) to {room} (all that the adapters hold)"
            )
        self._plan(steps)
        for module in self.modules:
            if module.before is None:
                module.show(module.counted)

    def _plan(self, steps: int | None) -> None:
        """The first step that may grow and the steps between two; where None, a tenth of the training and what lets
        growth end after six tenths of it, or 1000 steps each where the length is not known."""
        rounds = self.rounds()
        self.steps = 0 if steps is None else steps
        if self.init_warmup is not None:
            self.first = self.init_warmup
        else:
            self.first = 1000 if steps is None else steps // 10
        if self.incre_interval is not None:
            self.interval = self.incre_interval
        else:
            self.interval = (
                1000 if steps is None else max(1, (6 * steps // 10 - self.first) // max(rounds, 1))
            )
        if steps is not None and rounds and self.first + self.interval * (rounds - 1) + 1 >= steps:
            raise InputError(
                f"growth takes {self.first} + {rounds} × {self.interval} steps, longer than the training of {steps}: "
                "lower init_warmup, incre_interval or target_rank, or let more layers grow at a time"
            )

    def end(self) -> None:
        """Where it never began, every direction counts again; else what is in reserve no longer does."""
        if not self._handles:
            for module in self.modules:
                if module.before is None:
                    module.adapter.active = None
                    module.adapter._active_rank = None
                    if isinstance(module.adapter, CoreLoRA):
                        module.adapter.count(module.adapter.factor_rank)
            return
        for module in self.modules:
            module.show(module.counted)

    def before_step(self) -> None:
        self.add_orthogonality()
        self.grow_when_due()
        for module in self.modules:
            self._hold(module)

    def after_step(self) -> None:
        self._factors.release()

    def grow_when_due(self) -> None:
        """Score, and let ranks grow when it is time."""
        raise NotImplementedError

    def due(self) -> bool:
        """Whether ranks may grow in this step."""
        return self.step > self.first and self.step % self.interval == 0

    def choose(self, scores: Sequence[float], count: int) -> list[Module]:
        """The modules that grow: those that score no less than the ``count``-th best; within the budget the best of
        them, the first in the model where scores are equal.

        Args:
            scores: one for each module.
            count: how many are wanted.
        """
        able = [i for i, module in enumerate(self.modules) if module.rank < module.room]
        order = sorted(able, key=lambda i: -scores[i])
        count = min(max(count, 1), len(order))
        self.threshold = scores[order[count - 1]]
        chosen = [i for i in order if scores[i] >= self.threshold]
        if self.strict_budget:
            chosen = chosen[: math.ceil((self.target - self.total) / self.incre_rank_num)]
        return [self.modules[i] for i in sorted(chosen, key=order.index)]

    @torch.no_grad()
    def grow(self, module: Module) -> None:
        """Activate the next directions of a module."""
        add = min(self.incre_rank_num, module.room - module.rank)
        if self.strict_budget:
            add = min(add, self.target - self.total)
        before = module.rank
        module.rank += add
        module.born[before + module.reserve : module.rank + module.reserve] = self.step + 1
        module.freed[before : module.rank] = self.step + 1
        adapter = module.adapter
        if self.rescale_on_growth and isinstance(adapter, CoreLoRA) and not adapter.constant:
            change = adapter.scale
            adapter.count(module.rank)
            self._rescale(adapter, before, change / adapter.scale)
        module.show(module.born != WAITING)

    def _rescale(self, adapter: CoreLoRA, rank: int, change: float) -> None:
        """Multiply the core so that ΔW stays what it was, and its moments as its gradient changes."""
        core = adapter.core
        part = (slice(rank),) if adapter.diagonal else (slice(rank), slice(rank))
        core[part] *= change
        if core.grad is not None:
            core.grad[part] /= change
        state = self.optimizer.state.get(core, {})
        for name, power in (("exp_avg", 1), ("momentum_buffer", 1), ("exp_avg_sq", 2), ("max_exp_avg_sq", 2)):
            if isinstance(state.get(name), Tensor):
                state[name][part] /= change**power

    def add_orthogonality(self) -> None:
        """The gradient of ``reg_orth_coef`` times `orthogonality`."""
        if not self.reg_orth_coef:
            return
        factors = [p for m in self.modules for p in (m.adapter.lora_A, m.adapter.lora_B)]
        with torch.enable_grad():
            penalty = self.reg_orth_coef * self.orthogonality()
        for parameter, gradient in zip(factors, torch.autograd.grad(penalty, factors), strict=True):
            if parameter.grad is not None:
                parameter.grad += gradient

    def orthogonality(self) -> Float[Tensor, ""]:
        """The mean over modules of ‖A Aᵀ − 1‖_F and ‖Bᵀ B − 1‖_F, of the directions that are not waiting."""
        terms = []
        for module in self.modules:
            for rows in (module.adapter.lora_A, module.adapter.lora_B.t()):
                there = module.trained(rows.detach())
                rows = there.unsqueeze(1) * rows
                terms.append(torch.linalg.vector_norm(rows @ rows.t() - torch.diag(there)))
        return torch.stack([term.to(terms[0].device) for term in terms]).mean()

    def _hold(self, module: Module) -> None:
        """What the coming step of each direction is multiplied by."""
        for parameter, shape in module.per_direction():
            rate = self._rates(module, parameter)
            if parameter is getattr(module.adapter, "lora_C", None):
                waits = module.born == WAITING
                # an entry is as old as the younger of its two directions
                rate = torch.where(
                    module.born.unsqueeze(0) > module.born.unsqueeze(1), rate, rate.unsqueeze(1)
                )
                rate = self.core_rates(module) * torch.where(
                    waits.unsqueeze(0) | waits.unsqueeze(1), 0.0, rate
                )
            else:
                rate = rate.view(shape)
            if bool((rate != 1).any()):
                self._factors.hold(parameter, rate.to(parameter.device))

    def core_rates(self, module: Module) -> Tensor:
        """Further factors of the step of a full core."""
        return torch.ones(())

    def _rates(self, module: Module, parameter: nn.Parameter) -> Float[Tensor, " r"]:
        """0 where a direction waits, its own bias correction and warm-up where it is new, else 1."""
        group: Any = group_of(self.optimizer, parameter)
        taken = int(self.optimizer.state.get(parameter, {}).get("step", 0)) + 1
        rates = []
        for born in module.since(parameter).tolist():
            age = (
                self.step - born + 1
            )  # of the step to come, from 1; one activated now takes its first step next time
            if born == WAITING:
                rates.append(0.0)
            elif born == 0:
                rates.append(1.0)
            elif age < 1:
                rates.append(0.0)
            else:
                rates.append(bias_correction(group, age, taken) * self._warm(group, age - 1, born))
        return torch.tensor(rates, dtype=torch.float64)

    def _warm(self, group: dict[str, Any], age: int, born: int) -> float:
        """The learning rate of a group of its own that warms up for ``warmup`` steps and then falls to zero at the end
        of the training, over that of the group."""
        if not self.warmup:
            return 1.0
        left = self.steps - born
        falling = (left - age) / max(left - self.warmup, 1) if self.steps else 1.0
        own = age / self.warmup if age < self.warmup else min(max(falling, 0.0), 1.0)
        return own * float(group.get("initial_lr", group["lr"])) / float(group["lr"]) if group["lr"] else 1.0

    def state_dict(self) -> dict[str, Tensor]:
        state = {"target": torch.tensor(self.target)}
        for module in self.modules:
            state[f"{module.name}.born"] = module.born
            state[f"{module.name}.freed"] = module.freed
            state[f"{module.name}.rank"] = torch.tensor(module.rank)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        wanted = {"target", *(f"{m.name}.{key}" for m in self.modules for key in ("born", "freed", "rank"))}
        if not wanted <= state.keys() or any(
            len(state[f"{m.name}.born"]) != len(m.born) for m in self.modules
        ):
            raise InputError(
                f"the state of {self.slug} is of another model: resume with the adapters it was saved with"
            )
        if int(state["target"]) != self.target:
            raise InputError(
                f"target_rank is {self.target}, and the run that is resumed had {int(state['target'])}: give the same"
            )
        for module in self.modules:
            module.born = state[f"{module.name}.born"].cpu().clone()
            module.freed = state[f"{module.name}.freed"].cpu().clone()
            module.rank = int(state[f"{module.name}.rank"])
            module.show(module.born != WAITING)
