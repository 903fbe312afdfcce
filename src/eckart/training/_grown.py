"""One adapter whose rank grows: which of its directions are active, in reserve or waiting, and since when."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eckart.adapters.lora_core import CoreLoRA

WAITING = -1
"""Step at which a direction was activated that has not been."""


class Module:
    """One adapter that grows, and what the rule knows of it.

    Attributes:
        rank: how many directions are active, without those in reserve.
        reserve: how many further ones are trained ahead of their use.
        born: for each direction the step at which it was activated, or that it waits.
        freed: the same for its number in a diagonal core, which waits longer where the direction is in reserve.
    """

    def __init__(self, name: str, adapter: Any, init_r: int, reserve: int) -> None:
        self.name, self.adapter, self.reserve = name, adapter, reserve
        self.before = adapter.active
        born = torch.full((adapter.factor_rank,), WAITING)
        if adapter.active is None:
            self.rank = init_r
            born[:init_r] = 0
        else:  # one that has grown already
            self.rank = int(adapter.ranknum) if isinstance(adapter, CoreLoRA) else adapter.active_rank
            born[: adapter.active_rank] = 0
        self.born: Int[Tensor, " r"] = born
        self.freed: Int[Tensor, " r"] = torch.where(self.counted, 0, WAITING)
        self._trained: tuple[Tensor, int, Tensor] | None = None

    @property
    def room(self) -> int:
        """The highest rank it can reach."""
        return int(self.adapter.factor_rank) - self.reserve

    @property
    def counted(self) -> Bool[Tensor, " r"]:
        """The directions that make up its rank."""
        return torch.arange(len(self.born)) < self.rank

    def trained(self, like: Tensor) -> Float[Tensor, " r"]:
        """1 for each direction that trains and 0 for one that waits, beside a tensor: copied there when they change."""
        known = self._trained
        if known is None or known[0] is not self.born or known[1] != self.born._version:
            known = self.born, self.born._version, (self.born != WAITING).to(like)
            self._trained = known
        return known[2].to(like)

    def per_direction(self) -> list[tuple[nn.Parameter, tuple[int, ...]]]:
        """The parameters that have slices for each direction, with the shape in which one number for each direction
        broadcasts to them."""
        found: list[tuple[nn.Parameter, tuple[int, ...]]] = []
        parameters: list[nn.Parameter] = list(self.adapter.parameters())
        for parameter in parameters:
            if parameter is getattr(self.adapter, "lora_B", self):
                found.append((parameter, (1, -1)))
            elif parameter.shape[:1] == self.born.shape:
                found.append((parameter, (-1, *(1 for _ in parameter.shape[1:]))))
        return found

    def since(self, parameter: nn.Parameter) -> Int[Tensor, " r"]:
        """For each direction the first step in which the parameter trains."""
        return self.freed if parameter is getattr(self.adapter, "lora_E", None) else self.born

    def show(self, active: Bool[Tensor, " r"]) -> None:
        """Make these directions count in ΔW, with the scaling of its rank."""
        self.adapter.set_active(active)
        if isinstance(self.adapter, CoreLoRA):
            self.adapter.count(self.rank)


def bias_correction(group: dict[str, Any], own: int, taken: int) -> float:
    """What turns Adam's step for numbers that it has moved ``taken`` times into that for ones it has moved ``own``
    times; 1 for an optimiser without bias correction."""
    if "betas" not in group or own >= taken:
        return 1.0
    one, two = group["betas"][:2]
    return float(math.sqrt((1 - two**own) / (1 - two**taken)) * (1 - one**taken) / (1 - one**own))
