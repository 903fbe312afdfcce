"""Copies and pickles of optimisers go on as the originals do; parameters come with or without names."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from eckart.errors import InputError
from eckart.optim import DCTAdamW, GaLore, PerLayer, Spectron, Together, Trion

OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "dct": lambda model: DCTAdamW(model.parameters(), rank=2, error_feedback="int8", compile=False),
    "trion": lambda model: Trion(model.parameters(), rank=2),
    "galore": lambda model: GaLore(model.parameters(), rank=2),
    "together": lambda model: Together(
        [
            DCTAdamW([model[0].weight], rank=2),  # type: ignore[index]
            torch.optim.AdamW([model[2].weight]),  # type: ignore[index]
        ]
    ),
    "per-layer": lambda model: PerLayer(model.parameters(), lambda group: Trion([group], rank=2)),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def train(model: nn.Module, optimizer: Optimizer, steps: int = 2) -> list[torch.Tensor]:
    for seed in range(steps):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("way", ["copy", "pickle"])
def test_a_copy_goes_on_as_the_original_does(name: str, way: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](model)
    before = train(model, optimizer)
    pair: Any = model, optimizer
    other, again = copy.deepcopy(pair) if way == "copy" else pickle.loads(pickle.dumps(pair))
    assert all(torch.equal(p, q) for p, q in zip(before, other.parameters(), strict=True))
    ours, theirs = train(model, optimizer), train(other, again)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], before[0])


@pytest.mark.parametrize("kind", [DCTAdamW, Trion, GaLore])
def test_named_parameters_are_parameters(kind: Any) -> None:
    one, two = net(), net()
    plain, named = kind(one.parameters(), rank=2), kind(two.named_parameters(), rank=2)
    assert all(torch.equal(p, q) for p, q in zip(train(one, plain), train(two, named), strict=True))
    assert named.param_groups[0]["param_names"][0] == "0.weight"
    with pytest.raises(InputError, match=r"params\[4\] of shape \(8, 6\) is given twice"):
        kind(2 * list(two.named_parameters()), rank=2)


@pytest.mark.parametrize("kind", [DCTAdamW, Trion, GaLore])
def test_what_is_no_parameter_or_state_is_refused(kind: Any) -> None:
    with pytest.raises(InputError, match=r"params\[0\] is a int: give parameters"):
        kind([3], rank=2)
    optimizer = kind(net().parameters(), rank=2)
    for state in ({}, None, {"state": {}}):
        with pytest.raises(InputError, match="the state has no 'state' and 'param_groups'"):
            optimizer.load_state_dict(state)
    state = {**optimizer.state_dict(), "state": {0: {"step": 3}}}
    with pytest.raises(InputError, match=r"has the shapes \{'step': 'int'\}"):
        optimizer.load_state_dict(state)
    with pytest.raises(InputError, match="model is a generator: give the model itself"):
        Spectron(net().parameters())  # type: ignore[arg-type]
