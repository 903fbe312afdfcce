"""Spectron: the step of the product is bounded, norms are those of the factors, the rest is AdamW's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from eckart.errors import InputError
from eckart.optim import Spectron


class Factors(nn.Module):
    """Two factors, a matrix and a vector."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.lora_A = nn.Parameter(3 * torch.randn(4, 10, generator=g))
        self.lora_B = nn.Parameter(torch.randn(8, 4, generator=g))
        self.head, self.bias = nn.Linear(8, 3, bias=False), nn.Parameter(torch.zeros(3))
        nn.init.normal_(self.head.weight, std=0.2, generator=g)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x @ (self.lora_B @ self.lora_A).mT) + self.bias


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(16, 10, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    (model(x) - 1).square().mean().backward()
    optimizer.step()


def test_the_step_of_the_product_is_bounded_by_the_rate() -> None:
    model = Factors()
    optimizer = Spectron(model, lr=0.1)
    for t in range(6):
        before = [p.detach().clone() for p in (model.lora_A, model.lora_B)]
        step(model, optimizer, t)
        moved = model.lora_B @ model.lora_A - before[1] @ before[0]
        size = float(torch.linalg.matrix_norm(moved.detach(), 2))
        assert 0.01 < size < 0.1 * 1.3
        for p, old in zip((model.lora_A, model.lora_B), before, strict=True):
            values = torch.linalg.svdvals(old - p.detach())
            norms = sum(float(torch.linalg.matrix_norm(o, 2)) for o in before)
            rho = 0.1 / (norms + 1)
            assert 0.6 * rho < float(values[2]) and float(values[0]) < 1.35 * rho  # three outputs


def test_norms_are_the_largest_singular_values() -> None:
    model = Factors()
    optimizer = Spectron(model, lr=1e-6)
    for t in range(20):
        step(model, optimizer, t)
    for p in (model.lora_A, model.lora_B):
        with torch.no_grad():
            found = optimizer._norm(p)
        assert found == pytest.approx(float(torch.linalg.matrix_norm(p.detach(), 2)), rel=1e-3)


def test_decay_momentum_and_adamw_for_the_rest() -> None:
    model, other = Factors(), Factors()
    other.load_state_dict(model.state_dict())
    optimizer = Spectron(model, lr=0.1, weight_decay=0.5, adamw_scale=0.2)
    adamw = torch.optim.AdamW([other.head.weight], lr=0.02, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.5)
    step(model, optimizer, 0)
    other.head.weight.grad = model.head.weight.grad.clone()
    adamw.step()
    torch.testing.assert_close(model.head.weight, other.head.weight)
    assert float(model.bias.detach().abs().max()) == pytest.approx(
        0.02, rel=1e-4
    )  # no decay, the first step is the sign
    first = model.lora_A.grad.clone()
    step(model, optimizer, 1)
    torch.testing.assert_close(
        optimizer.state[model.lora_A]["momentum_buffer"], 0.95 * first + model.lora_A.grad
    )


def test_state_comes_back_bit_by_bit() -> None:
    model = Factors()
    optimizer = Spectron(model)
    for t in range(3):
        step(model, optimizer, t)
    again = copy.deepcopy(model)
    resumed = Spectron(again)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for t in range(3, 5):
        step(model, optimizer, t)
        step(again, resumed, t)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="no pairs lora_A and lora_B that both train"):
        Spectron(nn.Linear(3, 3))
    model = Factors()
    model.lora_B.requires_grad_(False)
    with pytest.raises(InputError, match="no pairs"):
        Spectron(model)
    for options, message in (
        ({"lr": -1}, "lr is -1: give a number of at least 0"),
        ({"momentum": 2}, "momentum is 2"),
        ({"ns_steps": 0}, "ns_steps is 0"),
    ):
        with pytest.raises(InputError, match=message):
            Spectron(Factors(), **options)
