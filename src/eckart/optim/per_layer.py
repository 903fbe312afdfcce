"""An optimiser that steps each parameter as soon as its gradient is there, and frees the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from eckart.optim.together import Together


class PerLayer(Together):
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
        super().__init__([make({**g, "params": [p]}) for g in groups for p in g["params"]])
        self._attach()

    def _attach(self) -> None:
        self.hooks = [
            one.param_groups[0]["params"][0].register_post_accumulate_grad_hook(self._stepper(one))
            for one in self.inner
        ]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy's parameters get hooks of their own."""
        super().__setstate__(state)
        self._attach()

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

    def detach(self) -> None:
        """Remove the hooks from the parameters."""
        for hook in self.hooks:
            hook.remove()
