"""Break-for-Make: its frozen halves, the two stages, and the fusion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_cases import MLP, Host, adapted, config, layers, rows, seeded, train
from peft import PeftModel
from torch import Tensor, nn

from eckart.adapters import lr_scales, trainable_parameters
from eckart.adapters.break_for_make import correspondence_gradients, fuse, precondition
from eckart.errors import InputError

DOUBLE = torch.float64
SLUG = "break-for-make"


def one_layer(out: int = 14, width: int = 10, name: str = "default", **options):
    """The model and its adapter."""
    model = adapted(SLUG, seeded(lambda: Host(nn.Linear(width, out)), DOUBLE), name, **options)
    return model, layers(model)[0].eckart_adapters[name]


def two(seed: int = 0, **options) -> PeftModel:
    """A model with a trained content and a trained style."""
    model = adapted(SLUG, seeded(MLP), "content", role="content", init_weights=False)
    model.add_adapter("style", config(SLUG, role="style", seed=seed, **options))
    model.set_adapter("style")
    train(model, rows(), lr=0.5)
    return model


@pytest.mark.parametrize(("out", "width"), [(14, 10), (13, 9), (1, 1), (7, 1)])
@pytest.mark.parametrize("fraction", [0.5, 0.25, 0.0])
def test_counts(out: int, width: int, fraction: float) -> None:
    model, adapter = one_layer(out, width, r=4, frozen_fraction=fraction)
    columns, frozen_rows = int(fraction * width), int(fraction * out)
    r = adapter.factor_rank
    assert r == min(4, out, width, (columns + frozen_rows) or 4)
    assert adapter.down_C.shape == (r, columns) and adapter.up_A.shape == (frozen_rows, r)
    assert trainable_parameters(model) == r * (width - columns) + r * (out - frozen_rows)


@pytest.mark.parametrize(("out", "width"), [(16, 16), (14, 10), (13, 21)])
def test_the_frozen_halves_are_rows_of_one_orthonormal_matrix(out: int, width: int) -> None:
    _, adapter = one_layer(out, width, r=5)
    gram = adapter.up_A.t() @ adapter.up_A + adapter.down_C @ adapter.down_C.t()
    torch.testing.assert_close(gram, torch.eye(5, dtype=DOUBLE), rtol=0, atol=1e-6)
    assert not adapter.up_B.any()
    deviation = one_layer(100, 400, r=5)[1].down_D.std().item()
    assert abs(deviation * 5 - 1) < 0.1


def test_both_roles_have_the_same_frozen_halves_and_another_seed_has_others() -> None:
    (_, content), (_, style), (_, other) = (
        one_layer(role=r, seed=s) for r, s in (("content", 3), ("style", 3), (None, 4))
    )
    for name in ("up_A", "down_C"):
        assert torch.equal(getattr(content, name), getattr(style, name))
        assert not torch.allclose(getattr(content, name), getattr(other, name))


def test_delta_is_made_of_four_blocks() -> None:
    _, adapter = one_layer(r=3, init_weights=False, network_alpha=6.0)
    a, b, c, d = adapter.up_A, adapter.up_B, adapter.down_C, adapter.down_D
    blocks = torch.cat([torch.cat([a @ c, a @ d], 1), torch.cat([b @ c, b @ d], 1)])
    torch.testing.assert_close(adapter.delta_weight(), 2 * blocks)


def test_the_frozen_halves_never_move() -> None:
    model, adapter = one_layer(r=3)
    before = adapter.up_A.clone(), adapter.down_C.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(10):
        model(rows(5, 10, DOUBLE)).square().mean().backward()
        optimizer.step()
    assert torch.equal(before[0], adapter.up_A) and torch.equal(before[1], adapter.down_C)


@pytest.mark.parametrize("route", ["factored", "folded"])
def test_zero_start(route: str) -> None:
    model, adapter = one_layer(r=3, zero_start=True, route=route)
    x = rows(5, 10, DOUBLE)
    assert not adapter.delta_weight().any()
    assert torch.equal(model(x), seeded(lambda: Host(nn.Linear(10, 14)), DOUBLE)(x))
    plain, moved = one_layer(r=3)[1], one_layer(r=3, zero_start=True)[1]
    start = plain.delta_weight().detach()
    with torch.no_grad():
        for each in (plain, moved):
            each.down_D += 0.3
            each.up_B -= 0.2
    torch.testing.assert_close(moved.delta_weight(), plain.delta_weight() - start)


def test_the_role_slows_the_other_half() -> None:
    for role, slow in (("content", "up_B"), ("style", "down_D")):
        model, _ = one_layer(role=role)
        assert lr_scales(model) == {f"base_model.model.layer.eckart_adapters.default.{slow}": 0.1}
    assert lr_scales(one_layer()[0]) == {}


@pytest.mark.parametrize(
    ("role", "own", "other"), [("content", "down_D", "up_B"), ("style", "up_B", "down_D")]
)
def test_each_loss_trains_its_half(role: str, own: str, other: str) -> None:
    def gradients(first: float, second: float) -> dict[str, Tensor]:
        model, adapter = one_layer(r=3, role=role, init_weights=False)
        y = model(rows(5, 10, DOUBLE))
        correspondence_gradients(model, (first * y).square().mean(), (second * y).abs().mean(), role)
        return {name: getattr(adapter, name).grad for name in ("down_D", "up_B")}

    plain, primary, correspondence = gradients(1, 1), gradients(2, 1), gradients(1, 3)
    torch.testing.assert_close(primary[own], 4 * plain[own])
    assert torch.equal(primary[other], plain[other])
    assert torch.equal(correspondence[own], plain[own])
    torch.testing.assert_close(correspondence[other], 3 * plain[other])


def test_fusing_takes_up_of_the_style_and_down_of_the_content() -> None:
    model = two()
    fuse(model)
    assert model.active_adapters == ["fused"]
    for layer in layers(model):
        content, style, fused = (layer.eckart_adapters[name] for name in ("content", "style", "fused"))
        assert torch.equal(fused.halves()[1], style.halves()[1])
        assert torch.equal(fused.halves()[0], torch.cat([style.down_C, content.down_D], 1))
        assert fused.down_D.requires_grad and fused.up_B.requires_grad
    fuse(model, "style", "style", "again")
    for layer in layers(model):
        assert torch.equal(layer.get_delta_weight("again"), layer.get_delta_weight("style"))


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"r": 3}, {"frozen_fraction": 0.25}, {"network_alpha": 2.0}]
)
def test_fusing_what_does_not_belong_together(options: dict[str, object]) -> None:
    model = two(**options)
    with pytest.raises(InputError, match="have other frozen halves in layer up"):
        fuse(model)
    assert set(model.peft_config) == {"content", "style"}


def test_fusing_under_a_name_that_is_taken_or_without_one_of_the_two() -> None:
    model = two()
    with pytest.raises(InputError, match="adapter_name is 'style', which is in this model"):
        fuse(model, adapter_name="style")
    with pytest.raises(InputError, match="no adapter 'nobody'"):
        fuse(model, content="nobody")


def test_preconditioned_descent_does_not_see_how_delta_is_split() -> None:
    """Without frozen halves: up → up M, down → M⁻¹ down leaves ΔW and, to first order, its change."""
    turn = torch.eye(3, dtype=DOUBLE) + 0.5 * torch.rand(
        3, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)
    )

    def change(split: bool, preconditioned: bool) -> Tensor:
        model, adapter = one_layer(r=3, frozen_fraction=0.0, init_weights=False)
        if split:
            with torch.no_grad():
                adapter.up_B.copy_(adapter.up_B @ turn)
                adapter.down_D.copy_(torch.linalg.solve(turn, adapter.down_D))
        (model(rows(5, 10, DOUBLE)) ** 3).sum().backward()
        if preconditioned:
            precondition(model, reg=1e-12)
        return adapter.up_B.grad @ adapter.down_D + adapter.up_B @ adapter.down_D.grad

    torch.testing.assert_close(change(True, True), change(False, True), rtol=1e-6, atol=1e-8)
    assert not torch.allclose(change(True, False), change(False, False), rtol=1e-2)


def test_a_factor_of_zeros_is_left_out_of_preconditioning() -> None:
    model, adapter = one_layer(r=3, frozen_fraction=0.0)
    model(rows(5, 10, DOUBLE)).square().sum().backward()
    before = adapter.down_D.grad.clone(), adapter.up_B.grad.clone()
    precondition(model, reg=1e-3)
    assert torch.equal(adapter.down_D.grad, before[0])
    assert not torch.allclose(adapter.up_B.grad, before[1])


def test_a_checkpoint_holds_the_trained_halves(tmp_path: Path) -> None:
    model = adapted(SLUG, seeded(MLP), r=4, init_weights=False)
    model.save_pretrained(tmp_path)
    halves = 4 * (12 - 6 + 24 - 12 + 24 - 12 + 6 - 3)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert 4 * halves < size < 4 * halves + 1000
    again = PeftModel.from_pretrained(seeded(MLP), tmp_path)
    assert torch.equal(again(rows()), model(rows()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"role": "both"}, "role is 'both': give 'content', 'style' or nothing"),
        ({"frozen_fraction": 1.0}, "frozen_fraction is 1.0: give a share in"),
        ({"frozen_fraction": -0.1}, "frozen_fraction is -0.1: give a share in"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(SLUG, **options)


def test_calls_without_an_adapter_of_this_method() -> None:
    other = adapted("lora", seeded(MLP))
    with pytest.raises(InputError, match="is not of break-for-make"):
        precondition(other)
    with pytest.raises(InputError, match="reg is 0: give a number above 0"):
        precondition(one_layer()[0], reg=0)
    with pytest.raises(InputError, match="role is None"):
        correspondence_gradients(one_layer()[0], torch.ones(()), torch.ones(()), None)
