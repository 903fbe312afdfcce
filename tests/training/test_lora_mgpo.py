"""LoRA-MGPO: where the weight is shifted to, how far, and that the frozen weight never moves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rule_cases import batch, model, resumed_equals_whole, steps, trained
from torch.optim import SGD, Adam

from eckart.adapters import walk
from eckart.errors import InputError
from eckart.training import LoRAGGPO, LoRAMGPO

ROUTES = pytest.mark.parametrize("route", ["factored", "folded"])


@ROUTES
@pytest.mark.parametrize("ascent", [False, True])
def test_the_shift(route: str, ascent: bool) -> None:
    m = model(init_weights=False, route=route)
    optimizer = Adam(trained(m), 0.01)
    rule = LoRAMGPO(rho=0.3, clamp=4.0, ascent=ascent).attach(m, optimizer)
    shift, (_, layer, _, adapter) = next(iter(rule.shifts.values())), next(walk(m))
    assert not shift.delta_weight().any()
    frozen = layer.base_layer.weight.clone()
    steps(m, optimizer, 2)
    v_a, v_b = (optimizer.state[p]["exp_avg"] for p in (adapter.lora_A, adapter.lora_B))
    d = adapter.scale * (v_b @ adapter.lora_A + adapter.lora_B @ v_a)
    epsilon = shift.delta_weight()
    expected = (1 if ascent else -1) * 0.3 * min(1 / shift.norm.item(), 4.0) * d / d.norm()
    torch.testing.assert_close(epsilon, expected.detach(), rtol=1e-9, atol=1e-12)
    x = batch(5)[0]
    weight = frozen + adapter.delta_weight() + epsilon
    torch.testing.assert_close(layer(x), x @ weight.t() + layer.base_layer.bias)
    assert torch.equal(layer.base_layer.weight, frozen)
    assert not any("companion" in name or "owner" in name for name in m.state_dict())


def test_the_smoothed_norm() -> None:
    m = model(init_weights=False)
    optimizer = SGD(trained(m), 0.0)
    rule = LoRAMGPO(beta=0.75, mu=0.5).attach(m, optimizer)
    shift, (*_, adapter) = next(iter(rule.shifts.values())), next(walk(m))
    seen = []
    for step in range(3):
        steps(m, optimizer, 1, start=step)
        a, b = adapter.lora_A, adapter.lora_B
        seen.append((adapter.scale * (b.grad @ a + b @ a.grad)).norm().item())
    expected = 0.75 * (0.75 * seen[0] + 0.25 * seen[1]) + 0.25 * seen[2]
    assert shift.norm.item() == pytest.approx(expected)


def test_what_is_refused() -> None:
    for options, message in (({"rho": -1.0}, r"rho is -1\.0"), ({"mu": 1.0}, r"mu is 1\.0")):
        with pytest.raises(InputError, match=message):
            LoRAMGPO(**options)
    m = model()
    with pytest.raises(InputError, match="the optimiser keeps no momentum, and mu is None"):
        LoRAMGPO().attach(m, SGD(trained(m), 0.1))
    optimizer = SGD(trained(m), 0.1, momentum=0.9)
    LoRAMGPO().attach(m, optimizer)
    with pytest.raises(InputError, match="has a companion already"):
        LoRAGGPO().attach(m, optimizer)


@pytest.mark.parametrize("mu", [None, 0.8])
def test_a_resumed_run_is_the_whole_run(tmp_path: Path, mu: float | None) -> None:
    resumed_equals_whole(tmp_path, lambda: LoRAMGPO(mu=mu), cut=3, total=5)
