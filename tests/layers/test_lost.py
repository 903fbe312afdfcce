"""LOST: the split of the dense start, both forms, what is kept, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.errors import InputError
from eckart.layers import LOSTLinear

DOUBLE = torch.float64
SIZES = pytest.mark.parametrize("size", [(12, 8), (8, 12)])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def linear_of(out: int = 12, width: int = 8, bias: bool = True) -> nn.Linear:
    linear = nn.Linear(width, out, bias=bias, dtype=DOUBLE)
    with torch.no_grad():
        linear.weight.copy_(numbers(out, width, seed=3) * torch.linspace(0.2, 2, width, dtype=DOUBLE))
        if bias:
            linear.bias.copy_(numbers(out, seed=4))
    return linear


def layer_of(size: tuple[int, int] = (12, 8), **options: Any) -> LOSTLinear:
    given = {"r": 3, "sparsity": 0.3, "activation": "identity"} | options
    return LOSTLinear.from_linear(linear_of(*size), 5, **given)


def residual_of(weight: Tensor, r: int) -> Tensor:
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return (u[:, r:] * s[r:]) @ vh[r:]


@SIZES
def test_the_factors_are_the_best_approximation_and_the_columns_what_it_misses(size: tuple[int, int]) -> None:
    layer, weight = layer_of(size), linear_of(*size).weight.detach()
    residual = residual_of(weight, 3)
    torch.testing.assert_close(weight - layer.lora_B @ layer.lora_A, residual, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.lora_A @ layer.lora_A.mT, layer.lora_B.mT @ layer.lora_B)
    count = int(0.3 * size[1])
    wanted = residual.norm(dim=0).topk(count).indices.sort().values
    assert layer.selected_columns.tolist() == wanted.tolist()
    assert wanted.tolist() != weight.norm(dim=0).topk(count).indices.sort().values.tolist()
    assert torch.equal(layer.sparse_values, weight[:, wanted]) and torch.equal(
        layer.bias, linear_of(*size).bias
    )


def test_other_ways_to_choose_columns() -> None:
    weight = linear_of().weight.detach()
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    for options, scores in (
        ({"norm": 1}, residual_of(weight, 3).abs().sum(0)),
        ({"sparse_svd_rank": 2}, ((u[:, 3:5] * s[3:5]) @ vh[3:5]).norm(dim=0)),
        ({"sparse_svd_rank": 2, "svd_inverse": True}, ((u[:, 6:] * s[6:]) @ vh[6:]).norm(dim=0)),
        ({"sparse_svd_rank": 50}, residual_of(weight, 3).norm(dim=0)),
    ):
        chosen = layer_of(sparsity=0.5, **options).selected_columns
        assert chosen.tolist() == scores.topk(4).indices.sort().values.tolist(), options
    drawn = layer_of(columns="random", sparsity=0.5).selected_columns
    assert len(set(drawn.tolist())) == 4 and drawn.tolist() == sorted(drawn.tolist())
    assert torch.equal(drawn, layer_of(columns="random", sparsity=0.5).selected_columns)


def test_cola_start_has_its_spread() -> None:
    linear = nn.Linear(300, 200, dtype=DOUBLE)
    layer = LOSTLinear.from_linear(linear, 1, r=50, init="cola")
    for factor in (layer.lora_A, layer.lora_B):
        assert abs(float(factor.detach().std()) * (50 * 500) ** 0.25 - 1) < 0.03


@SIZES
def test_identity_form_is_a_matrix_of_bounded_rank(size: tuple[int, int]) -> None:
    layer = layer_of(size, gamma=0.7)
    weight = 0.7 * layer.lora_B @ layer.lora_A
    weight[:, layer.selected_columns.long()] += 0.3 * layer.sparse_values
    torch.testing.assert_close(layer.dense_weight(), weight.detach(), rtol=0, atol=1e-12)
    x = numbers(2, 5, size[1])
    torch.testing.assert_close(layer(x), x @ weight.mT + layer.bias, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.to_linear()(x), layer(x), rtol=0, atol=1e-12)
    assert int(torch.linalg.matrix_rank(layer.dense_weight())) <= 3 + layer.selected_columns.numel()


def test_silu_form_is_no_matrix() -> None:
    layer, x = layer_of(activation="silu"), numbers(4, 8)
    h = x @ layer.lora_A.mT
    part = x[:, layer.selected_columns.long()] @ layer.sparse_values.mT
    wanted = 0.5 * (h * h.sigmoid()) @ layer.lora_B.mT + 0.5 * part + layer.bias
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-12)
    assert not torch.allclose(layer(2 * x) - layer.bias, 2 * (layer(x) - layer.bias))
    with pytest.raises(InputError, match="activation='silu': a layer with a non-linearity"):
        layer.to_linear()


@SIZES
@pytest.mark.parametrize("activation", ["silu", "identity"])
def test_gradients(size: tuple[int, int], activation: Any) -> None:
    layer = layer_of(size, activation=activation, gamma=0.3)
    names = [n for n, _ in layer.named_parameters()]

    def f(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(f, [numbers(4, size[1]).requires_grad_(), *layer.parameters()])


@pytest.mark.parametrize(("gamma", "idle"), [(1.0, ["sparse_values"]), (0.0, ["lora_A", "lora_B"])])
def test_a_part_of_no_weight_gets_no_gradient(gamma: float, idle: list[str]) -> None:
    layer = layer_of(gamma=gamma)
    layer(numbers(4, 8)).square().sum().backward()
    for name, p in layer.named_parameters():
        assert bool(p.grad.any()) == (name not in idle), name


def test_other_channels_have_no_influence() -> None:
    layer = layer_of()
    outside = torch.ones(8, dtype=torch.bool).index_fill_(0, layer.selected_columns.long(), False)
    rows = torch.cat([layer.lora_A.detach(), torch.eye(8, dtype=DOUBLE)[~outside]])
    direction = torch.linalg.svd(rows).Vh[-1]
    assert float((rows @ direction).abs().max()) < 1e-12
    torch.testing.assert_close(layer(direction), layer(torch.zeros_like(direction)), rtol=0, atol=1e-12)


def test_residual_values_start_at_the_dense_weight_on_the_kept_columns() -> None:
    layer, weight = layer_of(residual_values=True), linear_of().weight
    kept = layer.selected_columns.long()
    torch.testing.assert_close(layer.dense_weight()[:, kept], weight[:, kept].detach(), rtol=0, atol=1e-12)
    rest = (layer.lora_B @ layer.lora_A).detach()
    others = [j for j in range(8) if j not in kept.tolist()]
    torch.testing.assert_close(layer.dense_weight()[:, others], rest[:, others])


def test_fine_tuning_form() -> None:
    linear, x = linear_of(), numbers(5, 8)
    branch = layer_of(activation="silu")(x) - linear.bias
    tuned = layer_of(activation="silu", finetune=True, lora_alpha=6.0)
    torch.testing.assert_close(tuned(x), linear(x) + 2.0 * branch, rtol=0, atol=1e-12)
    assert not tuned.weight.requires_grad
    start = layer_of(finetune=True, zero_start=True)
    torch.testing.assert_close(start(x), linear(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(start.dense_weight(), linear.weight.detach(), rtol=0, atol=1e-12)
    assert not torch.allclose(start.weight, linear.weight)


@pytest.mark.parametrize(
    ("width", "sparsity", "count"), [(8, 0.3, 2), (8, 0.05, 1), (40, 0.05, 2), (8, 0.125, 1)]
)
def test_counts(width: int, sparsity: float, count: int) -> None:
    layer = layer_of((12, width), sparsity=sparsity)
    assert layer.selected_columns.numel() == count
    trained = sum(p.numel() for p in layer.parameters())
    assert (
        LOSTLinear.count(width, 12, r=3, sparsity=sparsity) == 3 * (width + 12) + 12 * count == trained - 12
    )


@pytest.mark.parametrize("activation", ["silu", "identity"])
def test_kept_for_the_backward_pass_are_input_parameters_and_r_numbers_a_token(activation: Any) -> None:
    layer, kept = layer_of((40, 30), activation=activation), []
    x = numbers(50, 30).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    storages = {t.untyped_storage().data_ptr(): t.numel() for t in kept if t.is_floating_point()}
    assert sum(storages.values()) == x.numel() + 3 * 70 + 40 * 9 + 50 * 3
    y.sum().backward()


@pytest.mark.compiled
def test_half_precision_autocast_and_compiling() -> None:
    x, exact = numbers(9, 8).float(), layer_of(activation="silu").float()
    half = layer_of(activation="silu").to(torch.bfloat16)
    torch.testing.assert_close(half(x.bfloat16()).float(), exact(x), rtol=0.05, atol=0.2)
    assert half.weights() == (0.5, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        y = exact(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert {p.grad.dtype for p in exact.parameters()} == {torch.float32}
    whole = torch.compile(exact, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(x), exact(x))
    whole(x).sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 8}, r"r=8: a layer of shape \(12, 8\) takes a whole number from 1 to 7"),
        ({"sparsity": 0}, "sparsity=0: give a share above 0"),
        ({"sparsity": 1}, "sparsity is 1: give a share in"),
        ({"gamma": 1.1}, r"gamma=1\.1: give a weight from 0 to 1"),
        ({"gamma": float("nan")}, "gamma is nan: give a number"),
        ({"lora_alpha": 0}, "lora_alpha is 0: give a positive number"),
        ({"activation": "relu"}, "activation='relu': choose one of silu, identity"),
        ({"columns": "first"}, "columns='first': choose one of residual, random"),
        ({"norm": 3}, "norm=3: choose one of 1, 2"),
        ({"init": "zero"}, "init='zero': choose one of svd, cola"),
        ({"sparse_svd_rank": 0}, "sparse_svd_rank=0: give a whole number"),
        ({"zero_start": True}, "zero_start=True without finetune=True"),
        (
            {"zero_start": True, "finetune": True, "activation": "silu"},
            "zero_start=True with activation='silu'",
        ),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        layer_of(**options)


def test_a_weight_that_is_not_finite_is_refused() -> None:
    linear = linear_of()
    with torch.no_grad():
        linear.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="holds NaN or infinity"):
        LOSTLinear.from_linear(linear, 0, r=2)
