"""What costs are measured with: the frozen floor of a step's time, and the peak of a step's memory."""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def device() -> torch.device:
    """Where runs take place: the accelerator when there is one."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Wait for what was begun on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class FrozenFloor:
    """The cheapest step there can be: forward and backward through every layer of the base with nothing trained.

    It shares the tensors of the model it is made from, so it costs no memory, and has modules of its own, so that
    what is later done to the model does not reach it. Make it before the model is adapted.
    """

    def __init__(self, model: nn.Module) -> None:
        shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
        self.model = copy.deepcopy(model, shared).train()
        first = next(m for m in self.model.modules() if next(m.parameters(recurse=False), None) is not None)
        first.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())

    def step(self, batch: dict[str, Any]) -> float:
        """Seconds of one step on a batch. The global random state is left as it was."""
        device = next(self.model.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            synchronize(device)
            start = time.perf_counter()
            self.model(**batch).loss.backward()
            synchronize(device)
            return time.perf_counter() - start


class PeakMemory(TorchDispatchMode):
    """Follows the bytes of all tensors alive: ``known`` ones and every one that appears while the mode is on."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, Any] = {}
        self.current = self.peak = 0
        for tensor in known:
            self._meet(tensor)

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def leave(_: Any) -> None:
            del self._alive[key]
            self.current -= size

        self._alive[key] = weakref.ref(storage, leave)
        self.current += size
        self.peak = max(self.peak, self.current)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._meet(leaf)
        return result
