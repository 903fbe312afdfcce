"""How the second factor B (out, rank) of a linear layer lies in memory.

The product with one token is bound by the reading of B. By rows it is `out` sums over `rank` numbers, each too short to
be read at full speed; by columns it is a sum of `rank` columns, whose numbers follow one another: 1.3 to 1.8 times as
fast in float32 on the CPU. The matrix is the same, only its strides are (1, out) instead of (rank, 1).

A model of transformers has its factors by columns once it is compressed or loaded; `save_pretrained` writes rows. What
is trained lies by rows, since code that flattens, shards or saves what it trains expects that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def by_columns(weight: Any, fresh: bool = False) -> None:
    """Lay a factor by columns if that is read faster; the parameter and its numbers stay.

    Args:
        weight: left alone if it is no plain parameter (quantised, spread over processes, computed from others), if it
            is a part of a larger storage, or if other processes share it.
        fresh: it comes straight from a file and nobody else reads it. What is mapped to memory is then laid out in its
            place: beside a copy it would stand in memory as long as the model lives.
    """
    if not _is_plain(weight) or not faster_by_columns(weight) or not weight.is_contiguous():
        return
    storage = weight.untyped_storage()
    if fresh and not storage.resizable():
        numbers = weight.data.view(-1)
        numbers.copy_(weight.data.t().flatten())
        weight.data = numbers.view(weight.shape[::-1]).t()
    elif storage.nbytes() == weight.nbytes and not weight.is_shared():
        weight.data = weight.data.t().contiguous().t()


def by_rows(weight: Any) -> None:
    """Lay a factor by rows again, unless other processes share it."""
    if _is_plain(weight) and (weight.device.type != "cpu" or not weight.is_shared()):
        weight.data = weight.data.contiguous()


def faster_by_columns(weight: torch.Tensor) -> bool:
    """Measured: in float32 on the CPU columns are never slower, whether for one token, for many or for a step of
    training. In float64 they are slower for some tokens, in bfloat16 for one.
    """
    return weight.device.type == "cpu" and weight.dtype is torch.float32


def _is_plain(weight: Any) -> bool:
    return type(weight) is nn.Parameter and weight.layout is torch.strided
