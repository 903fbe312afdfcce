"""What training takes of memory: weights, gradients, optimiser and activations, predicted and measured.

Predicted is counted with tensors that hold nothing: a model of any size, built on the meta device, can be asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from eckart.optim._base import LowRankOptimizer

QUANTISED = {"adamw-8bit": (8, 256), "AdamW8bit": (8, 256), "adamw-4bit": (4, 128), "AdamW4bit": (4, 128)}
"""Bits of torchao's states, and how many numbers of them share a scale; what that does not divide stays whole."""
SMALLEST = 4096
"""Numbers of the smallest tensor that torchao quantises."""


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        weights: parameters and buffers.
        gradients: all that are held at once; with per-layer updates the largest.
        optimizer: state.
        activations: what one forward pass keeps for the backward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def to_dict(self) -> dict[str, int]:
        """As JSON, with the total."""
        return {**asdict(self), "total": self.total}


def predicted(
    model: nn.Module,
    optimizer: str | Optimizer,
    *,
    batch: int,
    length: int,
    per_layer: bool = False,
    autocast: torch.dtype | None = None,
) -> Memory:
    """Bytes that one process will hold while it trains.

    Args:
        model: of transformers, on the meta device or not; a copy of it that holds nothing is run.
        optimizer: ``"adamw"``, ``"adamw-8bit"``, ``"adamw-4bit"``, or an optimiser over a model of these shapes: what
            is neither ours nor torch's nor torchao's is taken for AdamW.
        batch: sequences of one forward pass.
        length: tokens of a sequence.
        per_layer: gradients are freed one by one.
        autocast: type of mixed precision, if any.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = [p.numel() * p.element_size() for p in trained]
    if isinstance(optimizer, str):
        state = sum(_adam_bytes(p, optimizer) for p in trained)
    else:
        state = sum(_state_bytes(one) for one in getattr(optimizer, "inner", [optimizer]))
    device = trained[0].device if trained[0].device.type != "meta" else torch.device("cpu")
    with FakeTensorMode():
        ids = torch.zeros(batch, length, dtype=torch.long, device=device)
        activations = _activations(_faked(model, device), ids, autocast)[1]
    return Memory(held_bytes(model), max(gradients) if per_layer else sum(gradients), state, activations)


def measured(
    model: nn.Module,
    optimizer: Optimizer,
    ids: Tensor,
    per_layer: bool = False,
    autocast: torch.dtype | None = None,
) -> Memory:
    """Bytes that are held: after at least one step, and in one forward and backward pass more.

    Args:
        model: of transformers; its gradients are cleared.
        optimizer: over its parameters, with its state.
        ids: one batch (sequences, tokens).
        per_layer: the optimiser steps inside the backward pass.
        autocast: type of mixed precision, if any.
    """
    loss, activations = _activations(model.train(), ids, autocast)
    trained = [p for p in model.parameters() if p.requires_grad]
    sizes = [g.numel() * g.element_size() for g in torch.autograd.grad(loss, trained)]
    inner = getattr(optimizer, "inner", [optimizer])
    state = sum(_bytes(t) for one in inner for held in one.state.values() for t in held.values())
    return Memory(held_bytes(model), max(sizes) if per_layer else sum(sizes), state, activations)


def _activations(model: nn.Module, ids: Tensor, autocast: torch.dtype | None) -> tuple[Tensor, int]:
    losses: list[Tensor] = []

    def forward() -> None:
        with torch.autocast(ids.device.type, autocast, enabled=autocast is not None):
            losses.append(model(input_ids=ids, labels=ids).loss)

    size = kept_bytes(model, forward)
    return losses[0], size


def held_bytes(model: nn.Module) -> int:
    """Parameters and buffers, each storage once."""
    found = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in found.values())


def kept_bytes(model: nn.Module, forward: Callable[[], None]) -> int:
    """What a forward pass keeps for the backward pass, without parameters and buffers; a storage counts once.

    Args:
        model: whose parameters do not count.
        forward: the pass.
    """
    own = {_storage(t) for t in (*model.parameters(), *model.buffers())}
    kept: dict[Any, tuple[Tensor, int]] = {}

    def pack(t: Tensor) -> Tensor:
        if (key := _storage(t)) not in own and not isinstance(t, nn.Parameter):
            kept[key] = (
                t,
                t.untyped_storage().nbytes(),
            )  # the tensor is held, so that its storage is not used again
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward()
    return sum(size for _, size in kept.values())


def _storage(t: Tensor) -> Any:
    return t.untyped_storage()._cdata


def _bytes(value: Any) -> int:
    """Of a tensor, or of the parts of a quantised one."""
    if not isinstance(value, Tensor):
        return 0
    names = value.__tensor_flatten__()[0] if hasattr(value, "__tensor_flatten__") else None
    if names is None:
        return value.numel() * value.element_size()
    return sum(_bytes(getattr(value, name)) for name in names)


def _state_bytes(optimizer: Optimizer) -> int:
    if isinstance(optimizer, LowRankOptimizer):
        return optimizer.state_bytes()
    held = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    if type(optimizer).__name__ == "Muon":
        return sum(p.numel() * p.element_size() for p in held)
    return sum(_adam_bytes(p, type(optimizer).__name__) for p in held)


def _adam_bytes(p: Tensor, name: str) -> int:
    """Two moments and the step; in few bits codes, scales, and the table of all values."""
    bits, block = QUANTISED.get(name, (0, 1))
    if bits and p.numel() >= SMALLEST and p.numel() % block == 0:
        moment = p.numel() * bits // 8 + 4 * (p.numel() // block) + 4 * (1 << bits)
    else:
        moment = p.numel() * p.element_size()
    return int(2 * moment + 4)


def _faked(model: nn.Module, device: torch.device) -> nn.Module:
    """The same modules with parameters that hold nothing; the model itself is left as it is."""
    memo: dict[int, Any] = {}
    for t in (*model.parameters(), *model.buffers()):
        empty = torch.empty(t.shape, dtype=t.dtype, device=device)  # in the mode: a fake
        memo[id(t)] = nn.Parameter(empty, t.requires_grad) if isinstance(t, nn.Parameter) else empty
    return copy.deepcopy(model, memo).train()
