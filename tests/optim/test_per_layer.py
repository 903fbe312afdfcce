"""PerLayer: the same numbers as a common step, no gradient left, schedulers and states."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from eckart.errors import InputError
from eckart.optim import PerLayer


def model_of() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def per_layer(model: nn.Module) -> PerLayer:
    groups = [{"params": [p], "weight_decay": 0.1 * i} for i, p in enumerate(model.parameters())]
    return PerLayer(groups, lambda group: torch.optim.AdamW([{**group, "lr": 0.01}]))


def common(model: nn.Module) -> torch.optim.Optimizer:
    groups = [{"params": [p], "weight_decay": 0.1 * i} for i, p in enumerate(model.parameters())]
    return torch.optim.AdamW(groups, lr=0.01)


def test_steps_are_those_of_one_optimiser_under_a_scheduler() -> None:
    a, b = model_of(), model_of()
    optimizers = common(a), per_layer(b)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)) for o in optimizers]
    for t in range(4):
        for model, optimizer, schedule in zip((a, b), optimizers, schedules, strict=True):
            step(model, optimizer, t)
            schedule.step()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_gradient_is_gone_when_the_next_one_comes() -> None:
    model = model_of()
    optimizer, held = per_layer(model), []
    for p in model.parameters():
        p.register_hook(lambda g: held.append(sum(q.grad is not None for q in model.parameters())))
    step(model, optimizer, 0)
    assert held == [0, 0, 0, 0] and all(p.grad is None for p in model.parameters())
    assert float(optimizer.step(lambda: torch.ones(()))) == 1
    optimizer.detach()
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.ones(1, 6)).sum().backward()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(p.grad is not None for p in model.parameters())


def test_state_comes_back() -> None:
    model = model_of()
    optimizer = per_layer(model)
    step(model, optimizer, 0)
    again = copy.deepcopy(model_of())
    again.load_state_dict(model.state_dict())
    resumed = per_layer(again)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer, 1)
    step(again, resumed, 1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_bad_input_is_refused() -> None:
    p = nn.Parameter(torch.zeros(2))
    make = lambda group: torch.optim.SGD([group], lr=0.1)  # noqa: E731
    with pytest.raises(InputError, match="params is empty"):
        PerLayer([], make)
    with pytest.raises(InputError, match="holds a parameter twice"):
        PerLayer([p, p], make)
    with pytest.raises(InputError, match="the state is of 0 optimizers, this is one of 1"):
        PerLayer([p], make).load_state_dict({"state": {}})
