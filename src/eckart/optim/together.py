"""Several optimisers that a training loop handles as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch.optim import Optimizer

from eckart.errors import InputError


class Together(Optimizer):
    """Optimisers of different parameters as one: a step is a step of each.

    ``param_groups`` are theirs, one after the other, so that schedulers reach all of them.

    Args:
        inner: at least one.

    Raises:
        InputError: none, or a parameter that two of them hold.
    """

    def __init__(self, inner: Sequence[Optimizer]) -> None:
        self.inner = list(inner)
        members = [p for one in self.inner for g in one.param_groups for p in g["params"]]
        if not members:
            raise InputError("params is empty: give parameters that train")
        if len({id(p) for p in members}) < len(members):
            raise InputError("params holds a parameter twice: leave it in one group")
        super().__init__([dict(group) for one in self.inner for group in one.param_groups], {})
        self._join()

    def _join(self) -> None:
        self.param_groups = list(chain.from_iterable(one.param_groups for one in self.inner))

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle needs beside `torch.optim.Optimizer`'s own."""
        return {**super().__getstate__(), "inner": self.inner}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of each; the closure's value, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for one in self.inner:
            one.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The inner optimisers' states, in their order."""
        return {"state": {i: one.state_dict() for i, one in enumerate(self.inner)}, "param_groups": []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.load_state_dict`.

        Raises:
            InputError: the state is of another number of optimisers; nothing is changed.
        """
        states = state_dict["state"]
        if len(states) != len(self.inner):
            raise InputError(
                f"the state is of {len(states)} optimizers, this is one of {len(self.inner)}: load the state of the "
                "same parameters"
            )
        for i, one in enumerate(self.inner):
            one.load_state_dict(states[i])
        self._join()
