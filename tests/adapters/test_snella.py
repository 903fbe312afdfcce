"""SNELLA: its kernel, what its threshold leaves, and what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_cases import MLP, Host, adapted, config, layers, rows, seeded
from peft import PeftModel
from torch import nn

from eckart.errors import InputError
from eckart.linalg.kernel import sparse_piecewise_kernel, threshold

DOUBLE = torch.float64


def one_layer(out: int = 20, width: int = 30, dtype: torch.dtype = DOUBLE, **options):
    """The model and its adapter."""
    model = adapted("snella", seeded(lambda: Host(nn.Linear(width, out)), dtype), **options)
    return model, layers(model)[0].eckart_adapters["default"]


def test_the_softmax_runs_over_the_outputs() -> None:
    _, adapter = one_layer(init_weights=False)
    distance = sparse_piecewise_kernel(adapter.out_qs, adapter.in_qs, [0.1, -0.1], 0.0)
    share = (adapter.kernel() - distance - adapter.beta) / adapter.alpha
    torch.testing.assert_close(share.sum(0), torch.ones(30, dtype=DOUBLE))
    torch.testing.assert_close(share, torch.softmax(distance / adapter.gamma, 0))


def test_without_softmax_and_offset_the_kernel_is_snells() -> None:
    _, adapter = one_layer()
    with torch.no_grad():
        adapter.alpha.zero_()
    torch.testing.assert_close(
        adapter.kernel(), sparse_piecewise_kernel(adapter.out_qs, adapter.in_qs, [0.1, -0.1], 0.0)
    )


def test_the_start_follows_the_authors_code() -> None:
    _, adapter = one_layer(768, 768, torch.float32, r=32)
    assert [p.item() for p in (adapter.alpha, adapter.gamma, adapter.beta)] == [1, 1, 0]
    bound = (768 * 16) ** -0.5
    assert 0.99 * bound < adapter.in_qs.abs().max() <= bound
    kernel = adapter.kernel().detach()
    assert abs(kernel.mean() - 1 / 768) < 1e-4 and 4e-4 < kernel.std() < 8e-4
    assert 0 < adapter.delta_weight().abs().max() < 4e-5


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("how", ["square", "soft", "hard"])
def test_what_is_left(how: str, sparsity: float) -> None:
    """At sparsity 0, too, K is multiplied, and its smallest entry is zero."""
    _, adapter = one_layer(sparsity=sparsity, sparsify=how, init_weights=False)
    kernel, delta = adapter.kernel().detach(), adapter.delta_weight().detach()
    bound = threshold(kernel.abs(), sparsity, how)
    multiplied = {"square": kernel.abs(), "soft": kernel.abs() - bound, "hard": torch.ones_like(kernel)}[how]
    torch.testing.assert_close(delta, kernel * multiplied * (kernel.abs() > bound))
    assert abs(int((delta == 0).sum()) - sparsity * delta.numel()) <= 1


def test_a_layer_can_vanish() -> None:
    _, adapter = one_layer(init_weights=False)
    adapter.sparsity = 1.0
    assert not adapter.delta_weight().any()


def test_gradients_of_the_three_numbers_hold_the_multiplier_constant() -> None:
    _, adapter = one_layer(sparsity=0.4, init_weights=False)
    slope = torch.randn(20, 30, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    kernel = adapter.kernel().detach()
    held = kernel.abs() * (kernel.abs() > threshold(kernel.abs(), 0.4, "square"))
    (adapter.delta_weight() * slope).sum().backward()
    for parameter in (adapter.alpha, adapter.beta, adapter.gamma):
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter += step
                values.append((adapter.kernel() * held * slope).sum().item())
                parameter -= step
        torch.testing.assert_close(
            parameter.grad.item(), (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=1e-8
        )


def test_a_checkpoint_holds_the_sparsity_of_each_layer(tmp_path: Path) -> None:
    model = adapted("snella", seeded(MLP), sparsity=0.2, init_weights=False)
    up, down = (layer.eckart_adapters["default"] for layer in layers(model))
    up.sparsity, down.sparsity = 0.123456789012345, 1.0
    outputs = model(rows())
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(seeded(MLP), tmp_path)
    assert [layer.eckart_adapters["default"].sparsity for layer in layers(again)] == [0.123456789012345, 1.0]
    assert torch.equal(again(rows()), outputs)


def test_counts() -> None:
    model, _ = one_layer(r=6)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 6 * 50 + 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity is 1.0: give a share"),
        ({"sparsify": "cube"}, "sparsify is 'cube'"),
        ({"r": 3}, "r is 3: give a multiple of 2"),
        ({"coeff": []}, "coeff is empty"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config("snella", **options)
