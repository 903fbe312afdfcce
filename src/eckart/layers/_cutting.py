"""One network of ordered ranks, deployed at several sizes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from eckart.errors import InputError
from eckart.layers._convert import remember
from eckart.layers._maestro import MaestroLayer
from eckart.layers._replacing import install
from eckart.layers.ordered_dropout import maestro_layers
from eckart.linalg.ordered import importance_order

Model = TypeVar("Model", bound=nn.Module)


def prune(model: Model) -> Model:
    """Take the ranks that training dropped out of the tensors, in place; the outputs stay, and so does the order.

    Raises:
        InputError: no Maestro layer.
    """
    for name, layer in maestro_layers(model).items():
        install(model, name, layer.cut(layer.rank))
    remember(model)
    return model


def cut(model: Model, ratio: float = 0.0, *, ranks: Mapping[str, int] | None = None) -> Model:
    """A copy of a trained network at a smaller size, without training; the network stays as it is.

    Ranks go one by one, always the least important last rank of all layers (as a share of the importance of its
    layer's first), until the share is removed. A layer is
    made an ordinary one where that has fewer numbers: r (in + out) > in · out. Batch norms want `recalibrate`
    afterwards.

    Args:
        model: after ``convert(model, "maestro")`` and training with `OrderedDropout`.
        ratio: share of the numbers of these layers' dense weights to remove, in [0, 1); 0 keeps all ranks.
        ranks: instead, of each layer by its name; layers that are not named keep theirs.

    Raises:
        InputError: no Maestro layer, a ratio out of range or that no ranks meet, a rank that a layer has not.
    """
    layers = maestro_layers(model)
    if ranks is None:
        ranks = ranks_for(layers, ratio)
    elif ratio:
        raise InputError(f"ratio={ratio} and ranks are both given: leave one out")
    for name, rank in ranks.items():
        if name not in layers:
            raise InputError(f"ranks names {name}, which is no Maestro layer of the model")
        if not 1 <= rank <= layers[name].rank:
            raise InputError(f"ranks[{name!r}]={rank}: the layer has ranks from 1 to {layers[name].rank}")
    memo: dict[int, Any] = {
        id(layer): layer.cut(ranks.get(name, layer.rank)).cheapest() for name, layer in layers.items()
    }
    small = copy.deepcopy(model, memo)  # the layers of the copy are the cut ones
    remember(small)
    return small


def ranks_for(layers: Mapping[str, MaestroLayer], ratio: float) -> dict[str, int]:
    """The rank of each layer at a size: the least important last rank of all goes next.

    Importance is taken as a share of that of the layer's first rank: scales of different layers do not compare.

    Args:
        layers: by name.
        ratio: share of the numbers of their dense weights to remove.

    Raises:
        InputError: out of range, or more than ranks of one would remove.
    """
    if not 0 <= ratio < 1:
        raise InputError(f"ratio={ratio}: give the share to remove, from 0 to below 1")
    names = list(layers)
    left = [layer.rank for layer in layers.values()]
    sizes = [(f.first.shape[1], len(f.second)) for f in (layer.factors for layer in layers.values())]

    def numbers(i: int) -> int:
        return min(left[i] * sum(sizes[i]), sizes[i][0] * sizes[i][1])

    budget = (1 - ratio) * sum(a * b for a, b in sizes)
    total = sum(map(numbers, range(len(names))))
    found = [layer.importance()[layer.low_rank].detach().cpu() for layer in layers.values()]
    found = [values / values[0].clamp_min(torch.finfo(values.dtype).tiny) for values in found]
    for i in importance_order(found) if ratio else ():
        if total <= budget:
            break
        total -= numbers(i)
        left[i] -= 1
        total += numbers(i)
    if ratio and total > budget:
        raise InputError(
            f"ratio={ratio}: with one rank in each layer {total:,} numbers are left, more than {budget:,.0f}"
        )
    return dict(zip(names, left, strict=True))


@torch.no_grad()
def recalibrate(model: Model, batches: Iterable[Any]) -> Model:
    """Set the statistics of the batch norms to averages over these inputs, in place.

    Args:
        model: with or without batch norms.
        batches: inputs: mappings of keyword arguments, tuples, or tensors.

    Raises:
        InputError: no batches.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [(m, m.training, m.momentum) for m in norms]
    training = [(m, m.training) for m in model.modules()]
    model.eval()
    count = 0
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # a cumulative average
    try:
        for batch in batches:
            count += 1
            if isinstance(batch, Mapping):
                model(**batch)
            else:
                model(*batch) if isinstance(batch, tuple | list) else model(batch)
    finally:
        for norm, _, momentum in kept:
            norm.momentum = momentum
        for module, mode in training:
            module.training = mode
    if not count:
        raise InputError("batches is empty: give inputs to average over")
    return model
