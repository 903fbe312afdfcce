"""TriAdaptLoRA: ranks grow where the norm of the core between the factors rises fastest.

    ΔW = c(R) · B C A,   N = ‖C‖_F / (blocks),   importance of a module = its rise of N since the last growth
    modules to grow at a time = ⌊remaining · m⌋ ("linear") or ⌊remaining^m⌋ ("nonlinear"), m: share of the training done

A block is what was added at one time. The authors keep C as a lower and an upper triangle of blocks that are added, so
that the blocks on the diagonal are stored, and stepped, twice; here C is one matrix, and that step is doubled.
Source: Liang et al., 2025, arXiv:2501.08008, and the first author's code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.adapters import Adapter
from eckart.adapters.lora_core import CoreLoRA
from eckart.errors import InputError
from eckart.training._base import register_rule
from eckart.training._grown import WAITING, Module
from eckart.training._growth import GrowthRule


@register_rule(
    "triadaptlora",
    title="TriAdaptLoRA",
    paper="Liang et al., 2025",
    arxiv="2501.08008",
    trains="the ranks, which grow where the core's norm rises",
    saves="ranks, norms, and when each direction was activated",
    knob="target_rank",
)
@dataclass
class TriAdaptLoRA(GrowthRule):
    """TriAdaptLoRA: start every module at rank 1 and grow where ‖C‖_F rises fastest, until the budget is spent.

    Lifecycle:
        attach       all but ``init_r`` directions of each adapter wait; the norms of the cores are taken
        before_step  the orthogonality term; when due, the modules that score best grow
        after_step   directions that wait are put back, those that are new step as with an optimiser of their own, and
                     the diagonal of C steps twice
        detach       nothing

    Args:
        target_rank: the sum of ranks to reach; half of what the adapters hold when None.
        init_r: rank of each module at the start.
        incre_rank_num: directions that a module gains at a time.
        init_warmup: steps before growth; 0 when None.
        incre_interval: steps between two growths; 1 when None.
        reg_orth_coef: factor of the orthogonality term of A and B (the authors': 0.5).
        strict_budget: never exceed ``target_rank``, whatever ties and steps of several ranks would add.
        rescale_on_growth: multiply C by (R + 1)/R where the scaling α/R falls, so that ΔW does not change.
        warmup: steps over which the rate of new directions rises, to fall to zero at the end; 0 for the common rate.
        rank_growth_model: "linear", "nonlinear" or "fixed" (``top_k`` modules each time).
        top_k: for "fixed".
        norm_by: divide ‖C‖_F by the number of "blocks", as the code does, or by the "rank".
        double_diagonal: step the diagonal blocks of C twice as far, as two stored copies do.
        total_steps: steps at which m is 1; those of the training when None.

    Raises:
        InputError: an option outside its range.

    Source: Liang et al., 2025, arXiv:2501.08008.
    """

    reg_orth_coef: float = 0.5
    rank_growth_model: Literal["linear", "nonlinear", "fixed"] = "linear"
    top_k: int = 4
    norm_by: Literal["blocks", "rank"] = "blocks"
    double_diagonal: bool = True
    total_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("top_k", "total_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}: give a whole number of at least 1")
        for name, known in (
            ("rank_growth_model", ("linear", "nonlinear", "fixed")),
            ("norm_by", ("blocks", "rank")),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}: give one of {', '.join(known)}")

    @classmethod
    def suits(cls, adapter: Adapter) -> str:
        full = isinstance(adapter, CoreLoRA) and not adapter.diagonal
        return "" if full else "it has no full core between its factors: use lora-core with core='full'"

    def begin(self, steps: int | None) -> None:
        super().begin(steps)
        self.norms = self.measure()
        self.importance = torch.zeros_like(self.norms)

    def _plan(self, steps: int | None) -> None:
        self.first = 0 if self.init_warmup is None else self.init_warmup
        self.interval = 1 if self.incre_interval is None else self.incre_interval
        length = steps if self.total_steps is None else self.total_steps
        if length is None and self.rank_growth_model != "fixed":
            raise InputError("total_steps is None, and the training's length is not known: give one of them")
        if length is not None and length <= self.first:
            raise InputError(f"init_warmup is {self.first}, and the training has {length} steps: lower it")
        if steps is not None and length is not None and length > steps:
            raise InputError(f"total_steps is {length}, longer than the training of {steps} steps: lower it")
        self.steps = length or 0

    @torch.no_grad()
    def measure(self) -> Float[Tensor, " modules"]:
        """N of each module."""
        found = []
        for module in self.modules:
            core = module.adapter.lora_C[: module.rank, : module.rank]
            norm = torch.linalg.matrix_norm(core.double())
            blocks = len(set(module.born[: module.rank].tolist()))
            found.append(norm / (blocks if self.norm_by == "blocks" else module.rank))
        return torch.stack([norm.to(found[0].device) for norm in found])

    def count(self) -> int:
        """How many modules grow now."""
        remaining = self.target - self.total
        if self.rank_growth_model == "fixed":
            return self.top_k
        progress = (self.step - self.first) / (self.steps - self.first)
        if self.rank_growth_model == "linear":
            return int(remaining * progress)
        return int(math.exp(progress * math.log(remaining)))

    def grow_when_due(self) -> None:
        self.threshold = math.nan
        if not self.growing or not self.due():
            return
        norms = self.measure()
        self.importance, self.norms = norms - self.norms, norms
        for module in self.choose(self.importance.tolist(), self.count()):
            self.grow(module)

    def core_rates(self, module: Module) -> Tensor:
        if not self.double_diagonal:
            return super().core_rates(module)
        same = module.born.unsqueeze(0) == module.born.unsqueeze(1)
        return torch.where(same & (module.born != WAITING), 2.0, 1.0).double()

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"norms": self.norms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "norms" not in state:
            raise InputError(f"the state of {self.slug} has no norms: it is of another rule")
        super().load_state_dict(state)
        self.norms = state["norms"].to(self.norms)
