"""SaRA: which weights it chooses, that no other moves, and what it keeps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from adapter_cases import MLP, Host, adapted, assert_untouched, config, layers, rows, seeded, snapshot, train
from peft import PeftModel
from torch import nn

import eckart
from eckart.adapters import target_shapes, trainable_parameters
from eckart.adapters.sara import learning_rate
from eckart.errors import InputError

DOUBLE = torch.float64


def wide(dtype: torch.dtype = torch.float32) -> nn.Module:
    """One layer (90, 80) of normal weights of deviation 0.05."""
    base = seeded(lambda: Host(nn.Linear(80, 90)), dtype)
    with torch.no_grad():
        base.layer.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    return base


def test_what_is_below_the_threshold_is_chosen() -> None:
    base = wide()
    mask = base.layer.weight.detach().abs() < 0.01
    model = adapted("sara", base, threshold=0.01)
    [layer] = layers(model)
    adapter = layer.eckart_adapters["default"]
    assert trainable_parameters(model) == mask.sum()
    assert abs(int(mask.sum()) / (7200 * math.erf(0.01 / 0.05 / math.sqrt(2))) - 1) < 0.1
    assert torch.equal(adapter.sara_learn.detach(), layer.base_layer.weight[mask])
    assert torch.equal(adapter.sara_learn_index.long(), mask.flatten().nonzero().flatten())


def test_the_bound_is_strict_and_the_smallest_is_always_chosen() -> None:
    base = Host(nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        base.layer.weight.copy_(torch.tensor([[0.5, -0.25, 3.0], [-0.5, 1.0, 0.75]]))
    for threshold, wanted in ((0.5, [1]), (0.1, [1]), (0.75, [0, 1, 3]), (9.0, [0, 1, 2, 3, 4, 5])):
        model = adapted("sara", Host(base.layer), threshold=threshold)
        assert layers(model)[0].eckart_adapters["default"].sara_learn_index.tolist() == wanted
        base.layer = model.unload().layer


def test_one_threshold_for_all_layers() -> None:
    model = adapted("sara", seeded(MLP), chosen=40, target_modules=["up", "down"])
    assert trainable_parameters(model) == 40
    taken, left = [], []
    for layer in layers(model):
        sizes = layer.base_layer.weight.detach().abs().flatten()
        index = layer.eckart_adapters["default"].sara_learn_index.long()
        taken.append(sizes[index])
        left.append(sizes[torch.ones_like(sizes, dtype=torch.bool).index_fill(0, index, False)])
    assert torch.cat(taken).max() < torch.cat(left).min()


def test_the_default_is_a_tenth() -> None:
    assert trainable_parameters(adapted("sara", wide())) == 720


def test_weights_of_one_size_are_chosen_together() -> None:
    base = Host(nn.Linear(4, 4, bias=False))
    nn.init.constant_(base.layer.weight, 0.5)
    shapes = target_shapes(base, config("sara"))
    assert [config("sara", chosen=n).trainable_parameters(shapes) for n in (1, 8, 15, 16)] == [1, 1, 1, 16]


@pytest.mark.parametrize("route", ["factored", "folded"])
def test_no_other_weight_moves(route: str) -> None:
    model = adapted("sara", wide(), threshold=0.01, route=route)
    [layer] = layers(model)
    before, mask = layer.base_layer.weight.detach().clone(), layer.base_layer.weight.detach().abs() < 0.01
    assert torch.equal(model(rows(5, 80)), wide()(rows(5, 80)))
    train(model, rows(5, 80), steps=3, lr=5.0)
    assert torch.equal(layer.base_layer.weight, before)
    merged = model.merge_and_unload().layer.weight
    assert torch.equal(merged[~mask], before[~mask])
    assert (merged[mask] != before[mask]).float().mean() > 0.9


@pytest.mark.parametrize("route", ["factored", "folded"])
def test_the_gradient_is_the_dense_one_gathered(route: str) -> None:
    base = wide(DOUBLE)
    base(rows(5, 80, DOUBLE)).square().mean().backward()
    dense = base.layer.weight.grad.flatten(), base.layer.bias.grad
    model = adapted("sara", wide(DOUBLE), threshold=0.05, train_bias=True, route=route)
    adapter = layers(model)[0].eckart_adapters["default"]
    for half in rows(5, 80, DOUBLE)[:2], rows(5, 80, DOUBLE)[2:]:  # two halves are one whole
        (model(half).square().sum() / (5 * 90)).backward()
    for name, gradient in zip(("sara_learn", "sara_learn_bias"), dense, strict=True):
        index = adapter.get_buffer(f"{name}_index").long()
        torch.testing.assert_close(getattr(adapter, name).grad, gradient[index], rtol=1e-12, atol=1e-14)
    assert layers(model)[0].base_layer.weight.grad is None


def test_state_is_of_the_chosen_weights_alone() -> None:
    model = adapted("sara", wide(), chosen=500)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model(rows(5, 80)).square().mean().backward()
    optimizer.step()
    kept = [p.grad for p in model.parameters() if p.grad is not None]
    kept += [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    assert sum(t.numel() for t in kept) == 3 * 500


def test_strength_between_none_and_all() -> None:
    model, x = adapted("sara", wide(DOUBLE), threshold=0.02, init_weights=False), rows(5, 80, DOUBLE)
    trained, plain = model(x), wide(DOUBLE)(x)
    for strength in (0.0, 0.5, 1.0):
        layers(model)[0].set_scale("default", strength)
        torch.testing.assert_close(model(x), plain + strength * (trained - plain))


def test_biases_are_chosen_when_asked() -> None:
    base = wide()
    chosen = int((base.layer.bias.abs() < 0.02).sum())
    adapter = layers(adapted("sara", base, threshold=0.02, train_bias=True))[0].eckart_adapters["default"]
    assert adapter.sara_learn_bias.numel() == chosen > 0
    assert not adapter.delta_bias().any()


def test_a_base_whose_smallest_weights_are_others_is_refused(tmp_path: Path) -> None:
    adapted("sara", wide(), chosen=300, init_weights=False).save_pretrained(tmp_path)
    base = wide()
    with torch.no_grad():
        index = base.layer.weight.abs().flatten().argsort()
        flat = base.layer.weight.view(-1)
        flat[index[0]], flat[index[300]] = flat[index[300]].clone(), flat[index[0]].clone()
    before = snapshot(base)
    with pytest.raises(InputError, match="base model"):
        PeftModel.from_pretrained(base, tmp_path)
    assert_untouched(base, before)


def test_the_papers_learning_rate() -> None:
    for threshold, rate in (
        (2e-4, 9.32e-4),
        (8e-4, 7.56e-4),
        (2e-3, 4.9659e-4),
        (5e-3, 1.74e-4),
        (1e-2, 3.0e-5),
    ):
        assert abs(learning_rate(threshold) / rate - 1) < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold is 0.0: give a number above 0"),
        ({"chosen": 0}, "chosen is 0: give at least 1"),
        ({"threshold": 0.1, "chosen": 5}, "are both given: leave one out"),
        ({"rank_pattern": {"up": 2}}, "sara has no ranks"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    base = seeded(MLP)
    before = snapshot(base)
    with pytest.raises(InputError, match=message):
        eckart.adapt(base, "sara", target_modules=["up"], **options)
    assert_untouched(base, before)
