"""What an optimiser's step is multiplied by, element by element: learning rates that change from row to row."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class StepFactors:
    """Multiplies the step that any optimiser takes: θ ← θ_old + f ⊙ (θ_new − θ_old), its weight decay included."""

    def __init__(self) -> None:
        self._held: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    @torch.no_grad()
    def hold(self, parameter: nn.Parameter, factor: Tensor) -> None:
        """Before the step: remember the parameter, and the factor (which broadcasts to it) of its coming step."""
        self._held.append((parameter, parameter.detach().clone(), factor.to(parameter.dtype)))

    @torch.no_grad()
    def release(self) -> None:
        """After the step: apply the factors. Exact at 0 and 1."""
        for parameter, before, factor in self._held:
            parameter.copy_(torch.lerp(before, parameter.detach(), factor.expand_as(before)))
        self._held = []


def group_of(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, object]:
    """The parameter group of an optimiser that holds a parameter."""
    return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
