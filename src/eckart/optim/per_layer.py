"""An optimiser that steps each parameter as soon as its gradient is there, and frees the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from eckart.errors import InputError


class PerLayer(Optimizer):
    """Steps inside the backward pass, so that no two gradients are ever held at once.

    `step` only calls the closure: the update has already been made. Gradients can be neither accumulated nor clipped
    together, and a step cannot be left out. The learning rates are those of ``param_groups``, as schedulers set them.

    Args:
        params: parameters, or groups of them.
        make: makes the optimiser of one parameter from a group of it alone, such as
            ``lambda group: torchao.optim.AdamW8bit([group])``.

    Raises:
        InputError: no parameters, or a parameter given twice.
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], make: Callable[[dict[str, Any]], Optimizer]
    ) -> None:
        given: list[Any] = list(params)
        groups = [g if isinstance(g, dict) else {"params": [g]} for g in given]
        members = [p for g in groups for p in g["params"]]
        if not members:
            raise InputError("params is empty: give parameters that train")
        if len({id(p) for p in members}) < len(members):
            raise InputError("params holds a parameter twice: leave it in one group")
        self.inner = [make({**g, "params": [p]}) for g in groups for p in g["params"]]
        super().__init__([dict(one.param_groups[0]) for one in self.inner], {})
        self.param_groups = list(chain.from_iterable(one.param_groups for one in self.inner))
        self.hooks = [
            p.register_post_accumulate_grad_hook(self._stepper(one))
            for p, one in zip(members, self.inner, strict=True)
        ]

    @staticmethod
    def _stepper(optimizer: Optimizer) -> Callable[[Tensor], None]:
        def step(p: Tensor) -> None:
            optimizer.step()
            p.grad = None

        return step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The closure's value, if there is one: the parameters have moved in the backward pass."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def state_dict(self) -> dict[str, Any]:
        """The inner optimisers' states, in the parameters' order."""
        return {"state": {i: one.state_dict() for i, one in enumerate(self.inner)}, "param_groups": []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.load_state_dict`.

        Raises:
            InputError: the state is of another number of parameters; nothing is changed.
        """
        states = state_dict["state"]
        if len(states) != len(self.inner):
            raise InputError(
                f"the state is of {len(states)} parameters, this optimizer has {len(self.inner)}"
            )
        for i, one in enumerate(self.inner):
            one.load_state_dict(states[i])
        self.param_groups = list(chain.from_iterable(one.param_groups for one in self.inner))

    def detach(self) -> None:
        """Remove the hooks from the parameters."""
        for hook in self.hooks:
            hook.remove()
