"""How many parts a step's batch is computed in: as few as the memory holds.

Tensors that appear in a step on one and on two of the longest examples are counted, a + b and a + 2b bytes; n examples
take a + bn, and AdamW's moments come on top. On a GPU the step is then tried, with fewer while it runs out of memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eckart.tasks.instruments import PeakMemory, device
from eckart.tasks.memory import free_memory
from eckart.tasks.options import AUTO
from eckart.tasks.scoring import lengths

if TYPE_CHECKING:
    from eckart.tasks.task import Task

MOMENTS = 8
"""Bytes of AdamW's moments for each number that trains."""
SPARE = 0.1
"""Share of the free memory that is left alone."""


def parts_of(model: nn.Module, task: Task, batch_size: int) -> int:
    """The parts that a step's batch is computed in: as many as was said, or as few as fit.

    Args:
        model: on its device, with ``requires_grad`` set on what trains; it is left as it was.
        task: with its memory options and training examples.
        batch_size: examples of a step.
    """
    said = task.memory.gradient_accumulation
    if said != AUTO:
        return int(said)
    sizes = [size for size in range(batch_size, 1, -1) if batch_size % size == 0]
    one, two = (_peak(model, _longest(task, n)) for n in (1, 2))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    fixed = one - (two - one) + MOMENTS * trained
    allowed = (1 - SPARE) * free_memory()
    for size in sizes:
        if fixed + size * (two - one) <= allowed and (
            device().type != "cuda" or _survives(model, _longest(task, size))
        ):
            return batch_size // size
    return batch_size


def _longest(task: Task, number: int) -> dict[str, Any]:
    """A batch of the longest training examples."""
    sizes = lengths(task.train)
    order = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
    return task.collator([task.train[i] for i in order[:number]])


def _peak(model: nn.Module, batch: Mapping[str, Any]) -> int:
    """Bytes that a step takes beside the model."""
    with PeakMemory([*model.parameters(), *model.buffers()]) as memory:
        before = memory.current
        _step(model, batch)
        return int(memory.peak - before)


def _survives(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    try:
        _step(model, batch)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def _step(model: nn.Module, batch: Mapping[str, Any]) -> None:
    """Forward and backward in training mode; gradients, buffers, mode and random state are then as they were."""
    where = next(model.parameters()).device
    training, held = model.training, [(buffer, buffer.clone()) for buffer in model.buffers()]
    given = {name: value.to(where) if isinstance(value, Tensor) else value for name, value in batch.items()}
    try:
        with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
            model.train()
            model(**given).loss.backward()
    finally:
        model.train(training)
        for parameter in model.parameters():
            parameter.grad = None
        for buffer, value in held:
            buffer.copy_(value)
