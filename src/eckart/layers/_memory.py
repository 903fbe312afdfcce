"""What a module computes from its parameters alone, kept while they stay."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from eckart.linalg.convolution import tracing

T = TypeVar("T")


class Memory:
    """Keeps the last value of each name while the module is in evaluation, needs no gradient and does not change.

    Parameters are compared by value: they are small beside what is made of them, and version counters miss ``.data``.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Hashable, list[Tensor], Any]] = {}

    def get(self, module: nn.Module, name: str, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a name: the one kept, or a new one.

        Args:
            module: whose parameters it is made of.
            name: of the value; one is kept for each.
            key: of what else it is made.
            make: makes it.
        """
        parameters = list(module.parameters())
        differentiated = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        if module.training or differentiated or torch.compiler.is_compiling() or tracing():
            self._kept.clear()
            return make()
        key = key, torch.is_inference_mode_enabled()
        if name in self._kept:
            old_key, old, value = self._kept[name]
            if key == old_key and all(map(_same, old, parameters)):
                return value  # type: ignore[no-any-return]
        value = make()
        self._kept[name] = key, [p.detach().clone() for p in parameters], value
        return value

    def __reduce__(self) -> tuple[type[Memory], tuple[()]]:
        """Copies start empty."""
        return Memory, ()


def _same(x: Tensor, y: Tensor) -> bool:
    return x.dtype == y.dtype and x.device == y.device and torch.equal(x, y)
