"""SALT: the block structure of its core, its regulariser, and that its stored numbers meet their own basis again."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from adapter_cases import MLP, Host, adapted, add, layers, rows, seeded, train
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from eckart.adapters import SALTConfig, _kept, regularization
from eckart.errors import InputError

DOUBLE = torch.float64


def one_layer(out: int = 9, width: int = 14, **options):
    """The model, its adapter and its weight."""
    model = adapted("salt", seeded(lambda: Host(nn.Linear(width, out)), DOUBLE), **options)
    [layer] = layers(model)
    return model, layer.eckart_adapters["default"], layer.base_layer.weight.detach()


def shake(adapter, size: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=DOUBLE, generator=generator), alpha=size)


def core(adapter, matrix: Tensor) -> Tensor:
    return adapter.U.T @ matrix @ adapter.Vt.T


def test_without_relu_the_update_is_low_rank_and_in_two_blocks() -> None:
    _, adapter, _ = one_layer(r=3, r_lora=2, relu=False)
    shake(adapter)
    delta = adapter.delta_weight().detach()
    assert torch.linalg.matrix_rank(delta) == 5
    blocks = core(adapter, delta)
    assert blocks[:3, 3:].abs().max() < 1e-12
    assert blocks[3:, :3].abs().max() < 1e-12
    torch.testing.assert_close(blocks[3:, 3:], adapter.trainable_X @ adapter.trainable_Y, rtol=0, atol=1e-12)


def test_with_relu_the_whole_core_is_not_negative_and_the_rank_is_free() -> None:
    _, adapter, weight = one_layer(r=3, r_lora=2)
    shake(adapter, 2.0)
    effective = core(adapter, weight + adapter.delta_weight().detach())
    assert effective.min() > -1e-12
    assert (effective[3:, 3:].abs() < 1e-12).float().mean() > 0.2
    assert torch.linalg.matrix_rank(adapter.delta_weight()) > 5


def test_at_the_start_only_the_diagonal_passes_gradient() -> None:
    model, adapter, _ = one_layer(r=3, r_lora=2)
    x, g = rows(width=14, dtype=DOUBLE), rows(width=9, dtype=DOUBLE, seed=2)
    model(x).backward(g)
    assert not adapter.trainable_X.grad.any()
    projected = core(adapter, g.T @ x)[3:, 3:]
    expected = adapter.trainable_X.T @ torch.diag(projected.diagonal())
    torch.testing.assert_close(adapter.trainable_Y.grad, expected, rtol=1e-10, atol=1e-12)
    train(model, x, steps=1)
    model.zero_grad()
    model(x).backward(g)
    assert adapter.trainable_X.grad.any()


@pytest.mark.parametrize("route", ["factored", "folded"])
@pytest.mark.parametrize("shape", [(9, 14), (14, 9)])
def test_gradients_are_those_of_the_masked_core(shape: tuple[int, int], route: str) -> None:
    model, adapter, weight = one_layer(*shape, r=3, r_lora=2, route=route)
    shake(adapter)
    x, g = rows(width=shape[1], dtype=DOUBLE).requires_grad_(), rows(width=shape[0], dtype=DOUBLE, seed=2)
    model(x).backward(g)
    effective = weight + adapter.delta_weight().detach()
    torch.testing.assert_close(x.grad, g @ effective, rtol=1e-10, atol=1e-12)
    x = x.detach()
    a, b, xx, yy = (p.detach() for p in adapter.parameters())
    s = adapter.S
    new = torch.block_diag(torch.diag(a * s[:3] + b), torch.diag(s[3:]) + xx @ yy)
    masked = core(adapter, g.T @ x) * (new > 0)
    expected = {
        "trainable_scale_A": masked.diagonal()[:3] * s[:3],
        "trainable_shift_B": masked.diagonal()[:3],
        "trainable_X": masked[3:, 3:] @ yy.T,
        "trainable_Y": xx.T @ masked[3:, 3:],
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(adapter, name).grad, value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(9, 14), (14, 9)])
def test_few_inputs_go_through_the_core_and_many_through_one_product(shape: tuple[int, int]) -> None:
    """Multiply–adds of a step by hand: r = 3 of k = 9, so a core of 6 × 6 beside the head."""
    _, adapter, _ = one_layer(*shape, r=3, r_lora=2)
    for tokens in (1, 100):
        folded = tokens * 9 * 14 + 3 * (9 * 36 + 9 * 14 * 9)
        assert adapter.eval().multiply_adds(tokens) == (tokens * (2 * 9 * 23 + 3 * 36), folded)
        in_training = tokens * (2 * 9 * 23 + 3 * 36 - 2 * 9 * 14)
        kept = tokens * 9 * 14 + 2 * (9 * 36 + 9 * 14 * 9)
        assert adapter.train().multiply_adds(tokens)[1] == min(kept, in_training)


def test_a_shift_alone_moves_singular_values() -> None:
    _, adapter, _ = one_layer(r=4)
    shift = torch.tensor([0.1, -0.05, 0.2, -0.1], dtype=DOUBLE)
    assert bool((shift > -adapter.S[:4]).all())
    with torch.no_grad():
        adapter.trainable_shift_B.copy_(shift)
    expected = adapter.U[:, :4] * shift @ adapter.Vt[:4]
    torch.testing.assert_close(adapter.delta_weight(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shape", [(9, 14), (14, 9)])
def test_all_values_scaled_leaves_no_block(relu: bool, shape: tuple[int, int]) -> None:
    """r = k: scale and shift of every value; no X, no Y."""
    model, adapter, weight = one_layer(*shape, r=9, r_lora=3, relu=relu)
    assert adapter.trainable_X is adapter.trainable_Y is None
    with torch.no_grad():
        adapter.trainable_scale_A.fill_(1.25)
    torch.testing.assert_close(adapter.delta_weight(), 0.25 * weight, rtol=0, atol=1e-12)
    model(rows(width=shape[1], dtype=DOUBLE)).sum().backward()
    assert regularization(model).isfinite()


@pytest.mark.parametrize("relu", [True, False])
def test_without_a_low_rank_part_only_the_leading_values_move(relu: bool) -> None:
    _, adapter, _ = one_layer(r=4, r_lora=0, relu=relu)
    assert sum(p.numel() for p in adapter.parameters()) == 8
    shake(adapter, 0.1)
    assert torch.linalg.matrix_rank(adapter.delta_weight()) == 4


def test_regularization_is_the_sum_of_two_norms_over_the_active_adapters() -> None:
    model = adapted("salt", seeded(MLP, DOUBLE), r=2, r_lora=2)
    assert regularization(model) == 0
    expected = 0.0
    for layer in layers(model):
        adapter = layer.eckart_adapters["default"]
        shake(adapter)
        a, b, x, y = (p.detach() for p in adapter.parameters())
        s = adapter.S[:2]
        expected += torch.diag(a * s + b - s).norm() + (x @ y).norm()
    torch.testing.assert_close(regularization(model), expected, rtol=1e-12, atol=0)
    add("salt", model, init_weights=False)
    torch.testing.assert_close(regularization(model), expected, rtol=1e-12, atol=0)
    with pytest.raises(InputError, match="no active adapter of this model has a regularization term"):
        regularization(adapted("svfit", seeded(MLP)))


def test_regularization_has_gradients_at_the_start() -> None:
    model = adapted("salt", seeded(MLP))
    regularization(model).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_small_random_start_is_near_the_base() -> None:
    x = rows()
    base = seeded(MLP)(x)
    y = adapted("salt", seeded(MLP), init="small_random")(x)
    assert 0 < (y - base).abs().max() < 0.1


@pytest.mark.parametrize(
    ("options", "r", "r_lora"),
    [
        ({}, 1, 5),
        ({"ratio": 0.5}, 3, 3),
        ({"ratio": 0.01}, 1, 5),
        ({"r": 4}, 4, 2),
        ({"r": 4, "r_lora": 1}, 4, 1),
    ],
)
def test_ranks_from_ratio_and_defaults(options: dict, r: int, r_lora: int) -> None:
    """On `down (6, 24)`: k = 6."""
    adapter = layers(adapted("salt", seeded(MLP), target_modules=["down"], **options))[0].eckart_adapters[
        "default"
    ]
    assert (len(adapter.trainable_scale_A), adapter.trainable_X.shape) == (r, (6 - r, r_lora))


def test_other_singular_vectors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trailing direction that turns changes W: the checkpoint is refused, unless it holds its own basis."""
    model, x = adapted("salt", seeded(MLP), init_weights=False, r=2), rows()
    outputs = model(x)
    model.save_pretrained(tmp_path / "lean")
    whole = adapted("salt", seeded(MLP), init_weights=False, r=2, save_basis=True)
    assert torch.equal(whole(x), outputs)
    whole.save_pretrained(tmp_path / "whole")

    def turned(svd):
        u, s, vh = svd
        q = torch.linalg.qr(torch.randn(2, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))).Q
        u[:, -2:], vh[-2:] = u[:, -2:] @ q, q.T @ vh[-2:]
        return type(svd)(u, s, vh)

    original = _kept.leading_svd
    monkeypatch.setattr(_kept, "leading_svd", lambda weight, r: turned(original(weight, r)))
    with pytest.raises(InputError, match=r"singular vectors of layer (up|down).*save_basis=True"):
        PeftModel.from_pretrained(seeded(MLP), tmp_path / "lean")
    assert torch.equal(PeftModel.from_pretrained(seeded(MLP), tmp_path / "whole")(x), outputs)
    lean, full = (load_file(tmp_path / d / "adapter_model.safetensors") for d in ("lean", "whole"))
    assert {key.rpartition(".")[2] for key in set(full) - set(lean)} == {"U", "S", "Vt"}


def test_digest_survives_a_cast_of_the_model(tmp_path: Path) -> None:
    base = seeded(MLP).to(torch.bfloat16)
    model = adapted("salt", base, init_weights=False).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(seeded(MLP).to(torch.bfloat16), tmp_path)
    x = rows(dtype=torch.bfloat16)
    torch.testing.assert_close(loaded(x), model(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 2, "ratio": 0.1}, "leave one out"),
        ({"ratio": 0.0}, "ratio is 0.0"),
        ({"r_lora": -1}, "r_lora is -1"),
        ({"init": "ones"}, "init is 'ones'"),
    ],
)
def test_refused_options(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SALTConfig(**options)


def test_r_lora_is_at_most_what_is_left() -> None:
    [layer] = layers(adapted("salt", seeded(MLP), target_modules=["down"], r=2, r_lora=5))
    assert layer.eckart_adapters["default"].trainable_X.shape == (4, 4)


def test_the_low_rank_block_starts_as_stated() -> None:
    _, zero, _ = one_layer(120, 150, r=10, r_lora=4)
    bound = math.sqrt(6 / 4)
    assert 0.97 * bound < float(zero.trainable_X.abs().max()) <= bound
    assert float(zero.trainable_X.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not zero.trainable_Y.any()
    _, near, _ = one_layer(120, 150, r=10, r_lora=4, init="small_random")
    for factor in (near.trainable_X, near.trainable_Y):
        assert float(factor.detach().std()) == pytest.approx(0.01, rel=0.15)
    for adapter in (zero, near):
        assert bool((adapter.trainable_scale_A == 1).all()) and not adapter.trainable_shift_B.any()
