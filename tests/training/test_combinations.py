"""What combines with what: every pair that says yes takes a step, every other one is refused with its reason."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from rule_cases import Net, batch, trained

import eckart
from eckart.adapters import ADAPTERS
from eckart.errors import InputError
from eckart.training import RULES, Combination, combinations, get_rule

ASKED: dict[str, dict[str, Any]] = {
    "diffora": {"validation": lambda model, step: loss(model, step + 100), "search_steps": 1},
    "snella-allocation": {"every": 1, "initial_warmup": 0, "final_warmup": 0},
}
"""Options without which a rule cannot act for a few steps."""


@cache
def pairs() -> list[Combination]:
    return combinations()


def loss(model: torch.nn.Module, step: int) -> torch.Tensor:
    x, y = batch(step, dtype=torch.float32)
    return (model(x) - y).square().mean()


def attached(pair: Combination) -> tuple[torch.nn.Module, torch.optim.Optimizer, Any]:
    torch.manual_seed(0)
    model = eckart.adapt(Net(), pair.adapter, target_modules=["lin"], **pair.options).train()
    optimizer = torch.optim.AdamW(trained(model), 1e-2)
    rule = get_rule(pair.rule)(**ASKED.get(pair.rule, {}))
    return model, optimizer, rule.attach(model, optimizer, steps=4)


def named(pair: Combination) -> str:
    return f"{pair.adapter}+{pair.rule}"


def test_every_pair_is_there_once() -> None:
    found = [(pair.rule, pair.adapter) for pair in pairs()]
    assert sorted(found) == sorted((rule, adapter) for rule in RULES for adapter in ADAPTERS)
    assert {named(p): p.options for p in pairs() if p.rule == "triadaptlora" and not p.reason} == {
        "lora-core+triadaptlora": {"core": "full"}
    }
    assert all(not pair.options for pair in pairs() if pair.reason)


@pytest.mark.parametrize("pair", [pair for pair in pairs() if not pair.reason], ids=named)
def test_a_pair_that_says_yes_trains(pair: Combination) -> None:
    model, optimizer, rule = attached(pair)
    before = [p.detach().clone() for p in trained(model)]
    for step in range(3):
        optimizer.zero_grad()
        value = loss(model, step)
        assert torch.isfinite(value)
        value.backward()
        optimizer.step()
    assert rule.step == 3
    assert any(not torch.equal(p, was) for p, was in zip(trained(model), before, strict=False))
    rule.detach()
    assert torch.isfinite(loss(model, 3))


@pytest.mark.parametrize("pair", [pair for pair in pairs() if pair.reason], ids=named)
def test_a_pair_that_says_no_is_refused(pair: Combination) -> None:
    with pytest.raises(InputError, match=f"rule {pair.rule} does not suit") as caught:
        attached(pair)
    assert pair.reason in str(caught.value)
