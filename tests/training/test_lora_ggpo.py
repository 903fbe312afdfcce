"""LoRA-GGPO: when there is noise, how large, and that it is the same whenever it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rule_cases import batch, loss_of, model, resumed_equals_whole, steps, trained
from torch import nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

from eckart.adapters import walk
from eckart.errors import InputError
from eckart.training import LoRAGGPO

ROUTES = pytest.mark.parametrize("route", ["factored", "folded"])


def started(route: str = "factored", **options: float | str) -> tuple[nn.Module, SGD, LoRAGGPO]:
    m = model(init_weights=False, route=route)
    optimizer = SGD(trained(m), 0.05)
    rule = LoRAGGPO(**{"sigma": 0.2, "beta": 0.5} | options).attach(m, optimizer)
    steps(m, optimizer, 1)
    return m, optimizer, rule


@ROUTES
def test_no_noise_in_the_first_step_nor_in_evaluation_nor_at_zero(route: str) -> None:
    m, _, rule = started(route)
    plain = model(init_weights=False, route=route)
    assert loss_of(model(init_weights=False, route=route), 0) == loss_of(plain, 0)
    steps(plain, SGD(trained(plain), 0.05), 1)
    for one, two in zip(trained(m), trained(plain), strict=True):
        assert torch.equal(one, two)
    x = batch(1)[0]
    assert not torch.allclose(m(x), plain(x))
    assert torch.equal(m.eval()(x), plain.eval()(x))
    rule.detach()
    assert torch.equal(m.train()(x), plain.train()(x))
    quiet = started(route, sigma=0.0)[0]
    torch.testing.assert_close(quiet(x), plain(x))


def test_the_variance_of_each_row() -> None:
    m, _, rule = started()
    noise, (_, layer, _, adapter) = next(iter(rule.noises.values())), next(walk(m))
    weight = layer.base_layer.weight + adapter.delta_weight()
    torch.testing.assert_close(noise.weight_squares(), weight.square().sum(1), rtol=1e-10, atol=0)
    expected = 0.2**2 / 8 * (weight.square().sum(1) + 0.5 * noise.gradient_squares)
    draws = []
    for seed in range(2000):
        rule.seed = seed
        draws.append(noise.delta_weight())
    torch.testing.assert_close(torch.stack(draws).var((0, 2)), expected, rtol=0.05, atol=0)


def test_the_mean_row_norm_is_that_of_at_most_a_thousand_rows_evenly_spread() -> None:
    noise = next(iter(started(form="kohya")[2].noises.values()))
    noise.base_squares = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    assert float(noise.mean_row_norm()) == pytest.approx(2.0)
    roots = torch.arange(2500, dtype=torch.float64)
    noise.base_squares = roots.square()
    taken = np.linspace(0, 2499, 1000).astype(int)
    assert len(set(taken)) == 1000 and float(noise.mean_row_norm()) == pytest.approx(taken.mean(), rel=1e-3)
    noise.base_squares = torch.where(torch.arange(2500) == 1, 1e12, 0.0).double()  # between the first two
    assert float(noise.mean_row_norm()) == 0


def test_the_gradient_from_those_of_the_factors() -> None:
    m = model(init_weights=False)
    optimizer = SGD(trained(m), 0.05)
    rule = LoRAGGPO().attach(m, optimizer)
    loss_of(m, 0).backward()
    expected = []
    for *_, a in walk(m):
        dense = a.scale * (a.lora_B.grad @ a.lora_A + a.lora_B @ a.lora_A.grad)
        expected.append(dense.square().sum(1).detach())
    optimizer.step()
    for noise, squares in zip(rule.noises.values(), expected, strict=True):
        torch.testing.assert_close(noise.gradient_squares, squares, rtol=1e-10, atol=0)


@ROUTES
def test_the_exact_gradient(route: str) -> None:
    m = model(init_weights=False, route=route)
    optimizer = SGD(trained(m), 0.05)
    rule = LoRAGGPO(grad_norm="exact").attach(m, optimizer)
    loss_of(m, 0).backward()
    optimizer.step()
    plain = model(init_weights=False, route=route)
    _, other, _, _ = list(walk(plain))[-1]
    other.base_layer.weight.requires_grad_()
    loss_of(plain, 0).backward()
    expected = other.base_layer.weight.grad.square().sum(1)
    torch.testing.assert_close(list(rule.noises.values())[-1].gradient_squares, expected)


@ROUTES
def test_noise_is_in_every_gradient_and_the_same_when_recomputed(route: str) -> None:
    m, _, _ = started(route)
    _, layer, _, adapter = next(walk(m))
    x = batch(3)[0].requires_grad_()
    y = layer(x)
    g = torch.randn_like(y)
    m.zero_grad()
    y.backward(g)
    epsilon = layer.companions["default"].delta_weight()
    weight = layer.base_layer.weight + adapter.delta_weight() + epsilon
    torch.testing.assert_close(y, x @ weight.t() + layer.base_layer.bias)
    torch.testing.assert_close(x.grad, g @ weight)
    direct = [p.grad.clone() for p in adapter.parameters()]
    adapter.zero_grad()
    checkpoint(layer, x, use_reentrant=False).backward(g)
    for one, parameter in zip(direct, adapter.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, one)


def test_noise_rises_and_changes_from_step_to_step() -> None:
    m, optimizer, rule = started(warm_up=4)
    noise = next(iter(rule.noises.values()))
    first, std = noise.delta_weight(), noise.std()
    rule.warm_up = 0
    torch.testing.assert_close(4 * std, noise.std())
    steps(m, optimizer, 1, start=1)
    assert (noise.delta_weight() - first).abs().min() > 0


def test_what_is_refused() -> None:
    for options, message in (
        ({"sigma": -1.0}, r"sigma is -1\.0"),
        ({"ema": 1.0}, r"ema is 1\.0"),
        ({"form": "v2"}, "form is 'v2'"),
    ):
        with pytest.raises(InputError, match=message):
            LoRAGGPO(**options)
    m = model("mos", r=None)
    with pytest.raises(InputError, match="its factors are not trained themselves"):
        LoRAGGPO().attach(m, SGD(trained(m), 0.1))
    m = model()
    with pytest.raises(InputError, match="warm_up is 9, longer than the training of 8"):
        LoRAGGPO(warm_up=9).attach(m, SGD(trained(m), 0.1), steps=8)
    rule = LoRAGGPO().attach(m, SGD(trained(m), 0.1))
    with pytest.raises(InputError, match="is of other layers, such as x"):
        rule.load_state_dict({"x": torch.ones(1)})


def test_a_resumed_run_is_the_whole_run(tmp_path: Path) -> None:
    resumed_equals_whole(tmp_path, lambda: LoRAGGPO(sigma=0.1, ema=0.5, warm_up=6), cut=3, total=6)
