"""DiffoRA: gates and their gradients, who trains when, rounding, sharing, and resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rule_cases import batch, loss_of, model, resumed_equals_whole, steps, trained
from torch import Tensor, nn
from torch.optim import SGD, Adam

from eckart.adapters import walk
from eckart.errors import InputError
from eckart.training import DiffoRA


def validation(m: nn.Module, step: int) -> Tensor:
    assert not any(module.training for module in m.modules())
    x, y = batch(100 + step, dtype=next(m.parameters()).dtype)
    return (m(x) - y).square().mean()


def attached(m: nn.Module, **options: object) -> tuple[DiffoRA, Adam]:
    optimizer = Adam(trained(m), 0.02)
    return DiffoRA(**{"validation": validation, "search_steps": 3} | options).attach(m, optimizer), optimizer


@pytest.mark.parametrize("route", ["factored", "folded"])
@pytest.mark.parametrize("slug", ["lora", "svfit", "lora-core"])
def test_a_gate_multiplies_and_its_gradient_is_that_of_differences(slug: str, route: str) -> None:
    m = model(slug, init_weights=False, route=route)
    plain = m(batch(0)[0])
    with m.disable_adapter():
        base = m(batch(0)[0])
    adapters = [a for *_, a in walk(m)]
    for value, expected in ((1.0, plain), (0.0, base)):
        for adapter in adapters:
            adapter.gate = torch.tensor(value, dtype=torch.float64)
        torch.testing.assert_close(m(batch(0)[0]), expected, rtol=0, atol=1e-14)
    gate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    adapters[1].gate = gate
    torch.autograd.gradcheck(lambda g: [setattr(adapters[1], "gate", g), loss_of(m, 0)][1], (gate,))


def test_no_gradient_where_b_is_zero() -> None:
    m = model()
    rule, _ = attached(m)
    assert not rule.logits.grad.any()
    assert not rule.logits.any()


def test_each_step_trains_what_it_should() -> None:
    m = model(init_weights=False)
    before = [p.detach().clone() for p in trained(m)]
    rule, optimizer = attached(m)
    assert all(torch.equal(p, old) for p, old in zip(trained(m), before, strict=True))
    assert all(p.grad is None for p in trained(m))
    assert rule.logits.all()
    logits = rule.logits.detach().clone()
    loss_of(m, 0).backward()
    assert torch.equal(rule.logits, logits)
    assert m.training
    optimizer.step()
    assert not torch.equal(rule.logits, logits)


def test_relaxations() -> None:
    m = model()
    for kind in ("sigmoid", "softmax", "softmax_all"):
        rule, _ = attached(m, relaxation=kind, scope="layer", temperature=0.5)
        rule._rows = ["0", "0", "1"]
        with torch.no_grad():
            rule.logits.copy_(torch.tensor([1.0, 2.0, 3.0]))
        logits = rule.logits / 0.5
        expected = {
            "sigmoid": logits.sigmoid(),
            "softmax": torch.cat([logits[:2].softmax(0), torch.ones(1, dtype=torch.float64)]),
            "softmax_all": logits.softmax(0),
        }[kind]
        torch.testing.assert_close(rule.gates(), expected)
        rule.detach()


def test_rounding() -> None:
    m = model(init_weights=False)
    rule, _ = attached(m, rho=0.67)
    rule._rows = ["0", "0", "0"]
    with torch.no_grad():
        rule.logits.copy_(torch.tensor([1.0, 3.0, 1.0]))
    assert rule.choose().tolist() == [True, True, False]  # the lower index of two that are equal
    rule.rho = 0.1
    assert rule.choose().tolist() == [False, True, False]
    rule._rows = ["0", "0", "1"]
    assert rule.choose().tolist() == [False, True, True]
    rule.scope = "global"
    assert rule.choose().tolist() == [False, True, False]
    rule.select_by = "gate_norm"
    with torch.no_grad():
        list(walk(m))[2][3].lora_B.mul_(100)
    assert rule.choose().tolist() == [False, False, True]


@pytest.mark.parametrize("init", ["keep", "restart"])
def test_the_switch(init: str) -> None:
    m = model(init_weights=False)
    start = [p.detach().clone() for p in trained(m)]
    rule, optimizer = attached(m, scope="global", rho=0.34, sharing="none", init=init)
    steps(m, optimizer, 2)
    (chosen,) = [i for i, k in enumerate(rule.choose().tolist()) if k]
    adapters = [a for *_, a in walk(m)]
    loss_of(m, 2).backward()
    step = rule._round
    rule._round = lambda: None
    optimizer.step()
    gates = rule.gates().detach()
    rule._open(gates)
    gated = adapters[chosen].delta_weight().detach()
    step()
    assert [a.idle for a in adapters] == [not kept for kept in rule.dam.tolist()]
    assert all(a.gate is None for a in adapters)
    if init == "keep":
        torch.testing.assert_close(adapters[chosen].delta_weight(), gated)
    else:
        assert all(torch.equal(p, old) for p, old in zip(trained(m), start, strict=True))
    assert not optimizer.state
    m.merge_adapter()


def test_sharing_sums_gradients_and_counts_once() -> None:
    torch.manual_seed(0)
    import eckart

    base = nn.Sequential(*(nn.ModuleDict({"lin": nn.Linear(8, 8)}) for _ in range(3))).double()
    base.forward = lambda x: base[2]["lin"](torch.tanh(base[1]["lin"](torch.tanh(base[0]["lin"](x)))))
    m = eckart.adapt(base, "lora", target_modules=["lin"], r=2).train()
    optimizer = SGD(trained(m), 0.1)
    rule = DiffoRA(
        validation=lambda m, _: m(batch(7)[0]).square().mean(), search_steps=1, scope="global", rho=0.34
    )
    rule.attach(m, optimizer)
    m(batch(0)[0]).square().mean().backward()
    optimizer.step()
    assert rule.dam.tolist() == [True, False, False]
    first, second = [a for *_, a in walk(m)][1:]
    assert first.lora_A is second.lora_A
    assert sum(p.numel() for p in trained(m)) == 2 * 2 * 16
    with torch.no_grad():
        first.lora_B.normal_()
    m.zero_grad()
    m(batch(0)[0]).square().mean().backward()
    shared = first.lora_B.grad.clone()
    second.lora_B = nn.Parameter(first.lora_B.detach().clone())
    m.zero_grad()
    m(batch(0)[0]).square().mean().backward()
    torch.testing.assert_close(first.lora_B.grad + second.lora_B.grad, shared)


def test_the_budget_can_be_matched() -> None:
    m = model()
    _, optimizer = attached(m, rho=0.5, match_budget=True, sharing="none", scope="global")
    assert {a.active_rank for *_, a in walk(m)} == {2}
    steps(m, optimizer, 3)
    assert sorted(a.active_rank for *_, a in walk(m)) == [0, 0, 4]


def test_what_is_refused() -> None:
    for options, message in (
        ({"rho": 0.0}, r"rho is 0\.0"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"sharing": "layer"}, "sharing is 'layer'"),
        ({"scope": "global", "relaxation": "softmax"}, "gates of other layers do not compare"),
    ):
        with pytest.raises(InputError, match=message):
            DiffoRA(**options)
    m = model()
    for options, message in (
        ({}, "validation is None"),
        ({"validation": validation, "search_steps": 9}, "search_steps is 9, and the training has 9"),
        ({"validation": validation, "warm_up": 2, "search_steps": 2}, "warm_up is 2, and the search takes 2"),
    ):
        with pytest.raises(InputError, match=message):
            DiffoRA(**options).attach(m, SGD(trained(m), 0.1), steps=9)
    assert all(a.gate is None for *_, a in walk(m))


@pytest.mark.parametrize("cut", [2, 5])
def test_a_resumed_run_is_the_whole_run(tmp_path: Path, cut: int) -> None:
    def inner(m: nn.Module, step: int) -> Tensor:
        x, y = batch(100 + step, dtype=torch.float32)
        return m(x=x, y=y)["loss"]

    resumed_equals_whole(tmp_path, lambda: DiffoRA(validation=inner, search_steps=3), cut, total=7)
