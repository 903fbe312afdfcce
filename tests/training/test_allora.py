"""ALLoRA: the coefficient, what each target scales, and which mode acts under Adam."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rule_cases import batch, loss_of, model, resumed_equals_whole, steps, trained
from torch.optim import SGD, Adam

from eckart.adapters import walk
from eckart.errors import InputError
from eckart.training import ALLoRA
from eckart.training.allora import row_norms


def test_the_coefficient() -> None:
    rule = ALLoRA(eta=2.0)
    norms = torch.tensor([0.0, 0.75, 1.0], dtype=torch.float64)
    expected = torch.tensor([2.0, 1.0, 1.25**-0.5], dtype=torch.float64)
    torch.testing.assert_close(rule.coefficient(norms), expected)
    adapter = next(walk(model(init_weights=False)))[3]
    torch.testing.assert_close(row_norms(adapter), adapter.delta_weight().norm(dim=1), rtol=1e-10, atol=0)


@pytest.mark.parametrize("route", ["factored", "folded"])
def test_gradients_of_the_factors_are_scaled_and_those_of_the_input_exact(route: str) -> None:
    m = model(init_weights=False, route=route)
    _, layer, _, adapter = next(walk(m))
    g = torch.randn(5, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = layer(x := batch(0)[0].requires_grad_())
    plain.backward(g)
    of_input, x.grad = x.grad, None
    m.zero_grad()
    ALLoRA(eta=3.0).attach(m, SGD(trained(m), 0.1))
    y = layer(x)
    y.backward(g)
    torch.testing.assert_close(y, plain, rtol=0, atol=1e-14)
    torch.testing.assert_close(x.grad, of_input)
    s = (adapter.delta_weight().norm(dim=1) + 1 / 9).rsqrt().detach()
    scaled = s[:, None] * (g.t() @ x.detach())
    torch.testing.assert_close(adapter.lora_B.grad, adapter.scale * scaled @ adapter.lora_A.t())
    torch.testing.assert_close(adapter.lora_A.grad, adapter.scale * adapter.lora_B.t() @ scaled)


def test_sgd_cannot_tell_the_modes_apart_and_adam_can() -> None:
    ends = {}
    for kind, lr in ((SGD, 0.1), (Adam, 0.01)):
        for mode in ("grad", "update"):
            m = model(lora_alpha=4)
            optimizer = kind(trained(m), lr)
            ALLoRA(eta=4.0, target="b_row_delta", mode=mode).attach(m, optimizer)
            steps(m, optimizer, 1)
            ends[kind, mode] = [a.lora_B.detach().clone() for *_, a in walk(m)]
    for one, two in zip(ends[SGD, "grad"], ends[SGD, "update"], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-15)
    for one, two in zip(ends[Adam, "grad"], ends[Adam, "update"], strict=True):
        torch.testing.assert_close(one.abs(), torch.full_like(one, 0.01), rtol=1e-3, atol=0)
        torch.testing.assert_close(two.abs(), torch.full_like(two, 0.04), rtol=1e-3, atol=0)


def test_the_norm_of_each_output() -> None:
    m = model(init_weights=False, route="factored", lora_alpha=4)
    optimizer = SGD(trained(m), 0.1)
    rule = ALLoRA(target="output").attach(m, optimizer)
    assert steps(m, optimizer, 30)[-1] < 2
    rule.detach()
    assert all(layer.seams == {} for _, layer, _, _ in walk(m))


def test_what_is_refused() -> None:
    for options, message in (
        ({"eta": float("inf")}, "eta is inf"),
        ({"eta": 0.0}, r"eta is 0\.0"),
        ({"target": "rows"}, "target is 'rows'"),
        ({"mode": "both"}, "mode is 'both'"),
        ({"target": "output", "mode": "update"}, "a token has no step"),
    ):
        with pytest.raises(InputError, match=message):
            ALLoRA(**options)
    m = model(dropout=0.1)
    with pytest.raises(InputError, match=r"has dropout 0\.1"):
        ALLoRA().attach(m, SGD(trained(m), 0.1))
    m = model("snell")
    with pytest.raises(InputError, match=r"does not suit SNELL of layer blocks\.0\.lin: it is no product"):
        ALLoRA().attach(m, SGD(trained(m), 0.1))
    m = model("svfit")
    with pytest.raises(InputError, match="target 'b_row' needs a trained factor B"):
        ALLoRA(target="b_row").attach(m, SGD(trained(m), 0.1))
    m = model()
    with pytest.raises(InputError, match="use route='factored'"):
        ALLoRA(target="output").attach(m, SGD(trained(m), 0.1))
    optimizer = SGD(trained(m), 0.1)
    ALLoRA().attach(m, optimizer)
    with pytest.raises(InputError, match="cannot act beside rule allora on this optimiser"):
        ALLoRA().attach(m, optimizer)
    with pytest.raises(InputError, match="has a seam already"):
        ALLoRA().attach(m, SGD(trained(m), 0.1))


@pytest.mark.parametrize("mode", ["grad", "update"])
def test_a_resumed_run_is_the_whole_run(tmp_path: Path, mode: str) -> None:
    resumed_equals_whole(tmp_path, lambda: ALLoRA(mode=mode), cut=3, total=5)


def test_merging_after_it() -> None:
    m = model()
    optimizer = SGD(trained(m), 0.1)
    rule = ALLoRA().attach(m, optimizer)
    steps(m, optimizer, 3)
    rule.detach()
    before = loss_of(m, 9).item()
    m.merge_adapter()
    assert loss_of(m, 9).item() == pytest.approx(before, rel=1e-12)
