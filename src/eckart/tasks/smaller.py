"""A model made smaller on a task: the batches that calibrate it, and what healing trains."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from eckart.tasks.task import Task

CALIBRATION = 128
"""Training examples that the statistics of a compression see."""
HEAL_LR = 1e-4


def calibration_batches(task: Task, number: int, batch_size: int) -> Iterator[dict[str, Any]]:
    """The first training examples, as batches; their labels are for methods that train."""
    from torch.utils.data import DataLoader

    loader = DataLoader(task.train, batch_size=batch_size, collate_fn=task.collator)
    yield from islice(loader, math.ceil(number / batch_size))


def note_calibration(task: Task, number: int) -> None:
    """Note beside the data that they hold fewer training examples than the statistics are to see."""
    if number > (there := len(task.train)):  # type: ignore[arg-type]
        task.data.notes.append(f"calibration sees all {there:,} training examples, {number:,} were asked for")


def train_factors(model: nn.Module, changed: Collection[str], task: Task) -> None:
    """Let the compressed layers, the norms and the head train, and nothing else."""
    from eckart.tasks.trainer import in_head

    for name, parameter in model.named_parameters():
        free = in_head(name, [*changed, *task.head_modules]) or "norm" in name.lower()
        parameter.requires_grad_(free)
