"""W₀ + ΔW through the factors of W₀: the numbers and gradients of one product with the sum, and when it is not used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adapter_cases import Host, adapted, gradients, layers, rows, seeded
from torch import Tensor, nn

from eckart.adapters import EckartLayer

DOUBLE = torch.float64
METHODS: dict[str, dict[str, Any]] = {
    "svfit": {"r": 9},
    "loldu": {"r": 9, "train_scaling": True},
    "salt": {"r": 3, "r_lora": 2},
}
every_method = pytest.mark.parametrize("slug", METHODS)


def one_layer(slug: str, shape: tuple[int, int] = (9, 14), dtype: torch.dtype = DOUBLE, **options: Any):
    """The model in training, away from its start, and its layer."""
    base = seeded(lambda: Host(nn.Linear(*shape[::-1], bias=options.pop("bias", True))), dtype)
    model = adapted(slug, base, init_weights=False, route="folded", **{**METHODS[slug], **options}).train()
    [layer] = layers(model)
    return model, layer


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output and every gradient."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x)
    y.sin().sum().backward()
    return y.detach(), gradients(model) | {"x": x.grad}


@every_method
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (9, 9)])
def test_numbers_and_gradients_are_those_of_the_sum(
    slug: str, shape: tuple[int, int], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layer = one_layer(slug, shape, bias=bias)
    x = rows(width=shape[1], dtype=DOUBLE)
    for scaling in (1.0, 0.7):
        layer.set_scale("default", scaling)
        assert layer.eckart_adapters["default"].spans()
        found, slopes = step(model, x)
        with monkeypatch.context() as patch:
            patch.setattr(EckartLayer, "_by_method", lambda *_: None)
            expected, of_sum = step(model, x)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
        assert slopes.keys() == of_sum.keys() > {"x"}
        for name, slope in slopes.items():
            torch.testing.assert_close(slope, of_sum[name], rtol=1e-9, atol=1e-10)


@every_method
def test_a_frozen_product_less_is_counted(slug: str) -> None:
    """Four products with square factors, none with W₀, of which the layer's own would be two; SALT's core is more."""
    _, layer = one_layer(slug, (9, 9))
    adapter, core = layer.eckart_adapters["default"], 3 * 6 * 6 if slug == "salt" else 0
    assert adapter.multiply_adds(1)[1] == 2 * 9 * 18 - 2 * 81 + core
    assert adapter.eval().multiply_adds(1)[1] > 2 * 9 * 18


@every_method
def test_many_inputs_meet_the_sum_instead_of_its_factors(slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built once, kept and used, which costs less than two products for each input; the numbers stay."""
    model, layer = one_layer(slug, (9, 9))
    layer.set_scale("default", 0.7)
    adapter, x = layer.eckart_adapters["default"], rows(500, width=9, dtype=DOUBLE)
    costs = [(adapter.multiply_adds(n)[1], adapter.span_cost(n)) for n in (1, 500)]
    assert costs[0][0] == costs[0][1] and costs[1][0] < costs[1][1]
    found, slopes = step(model, x)
    passed: list[int] = []
    original = type(adapter).core

    def core(self: Any, h: Tensor, scaling: float) -> Tensor:
        passed.append(len(h))
        return original(self, h, scaling)

    monkeypatch.setattr(type(adapter), "core", core)
    step(model, x)
    step(model, x[:2])
    assert passed == [2]
    monkeypatch.setattr(EckartLayer, "_by_method", lambda *_: None)
    expected, of_sum = step(model, x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
    for name, slope in slopes.items():
        torch.testing.assert_close(slope, of_sum[name], rtol=1e-9, atol=1e-10)


@every_method
def test_another_weight_is_not_mistaken_for_that_of_the_factors(slug: str) -> None:
    model, layer = one_layer(slug)
    adapter, weight = layer.eckart_adapters["default"], layer.base_layer.weight
    x = rows(width=14, dtype=DOUBLE)
    assert adapter.spans()
    before = step(model, x)[0]
    with torch.no_grad():
        weight.add_(0.5)
    assert not adapter.spans()
    torch.testing.assert_close(step(model, x)[0] - before, (x @ torch.full((14, 9), 0.5, dtype=DOUBLE)))
    with torch.no_grad():
        weight.sub_(0.5)
    assert adapter.spans()
    weight.requires_grad_()
    assert not adapter.spans()


@pytest.mark.parametrize(("slug", "options"), [("svfit", {"r": 8}), ("loldu", {"init_method": "ones"})])
def test_factors_of_less_than_the_weight_do_not_stand_for_it(slug: str, options: dict[str, Any]) -> None:
    assert not one_layer(slug, **options)[1].eckart_adapters["default"].spans()


def test_a_singular_weight_whose_pivots_end_early_is_not_rebuilt_from_them() -> None:
    base = seeded(lambda: Host(nn.Linear(9, 9)), DOUBLE)
    with torch.no_grad():
        base.layer.weight[:, 0] = 0
    [layer] = layers(adapted("loldu", base, r=9).train())
    adapter = layer.eckart_adapters["default"]
    b, a = adapter.lora_B, adapter.lora_A
    same = torch.allclose((b * adapter.vector_z0) @ a, base.layer.base_layer.weight, atol=1e-9)
    assert adapter.spans() == same
    assert not same


def test_directions_at_rest_stay_as_they_are() -> None:
    model, layer = one_layer("svfit")
    layer.eckart_adapters["default"].set_active(torch.arange(9) < 4)
    _, slopes = step(model, rows(width=14, dtype=DOUBLE))
    [slope] = [value for name, value in slopes.items() if "svfit_s" in name]
    assert slope[:4].all()
    assert not slope[4:].any()


def test_single_precision_is_within_rounding_of_the_sum() -> None:
    for slug in METHODS:
        model, layer = one_layer(slug, (64, 48), torch.float32, r=48 if slug != "salt" else 3)
        assert layer.eckart_adapters["default"].spans()
        x = rows(width=48)
        effective = layer.base_layer.weight.double() + layer.get_delta_weight("default").double()
        expected = x.double() @ effective.t() + layer.base_layer.bias.double()
        found = model(x)
        assert (found.double() - expected).norm() < 2e-6 * expected.norm()
