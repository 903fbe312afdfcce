"""Several processes that a launcher, `torchrun` or `accelerate launch`, has started for one run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def world() -> int:
    """How many there are; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_first() -> bool:
    """Whether this one speaks for all: it writes files and tells how the run goes."""
    return world() == 1 or os.environ["RANK"] == "0"


def shared(work: Callable[[], T]) -> T:
    """What the first process finds when all have come so far, in all of them; they wait for it.

    Args:
        work: done by the first alone; its result must be of plain values.

    Raises:
        Exception: whatever the first one raises, in all of them.
    """
    if world() == 1:
        return work()
    import torch
    import torch.distributed as dist
    from accelerate import PartialState  # type: ignore[import-untyped]

    PartialState(cpu=not torch.accelerator.is_available())
    dist.barrier()
    found: list[Any] = [None, None]
    if is_first():
        try:
            found[0] = work()
        except Exception as error:  # the others must not wait for ever
            found[1] = error
    dist.broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    result: T = found[0]
    return result
