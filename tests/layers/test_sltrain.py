"""SLTrain: the support, the two routes, what is kept for the backward pass, saving by seed, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.errors import InputError
from eckart.layers import SLTrainLinear
from eckart.linalg.sparse import balanced_support, random_support

DOUBLE = torch.float64
ROUTES = pytest.mark.parametrize("route", ["dense", "factored"])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def layer_of(out: int = 12, width: int = 8, **options: Any) -> SLTrainLinear:
    given = {"r": 3, "sparsity": 0.2, "lora_alpha": 6.0, "seed": 5, "dtype": DOUBLE} | options
    layer = SLTrainLinear(width, out, **given)
    with torch.no_grad():
        layer.lora_B.copy_(numbers(*layer.lora_B.shape, seed=7))
        if layer.bias is not None:
            layer.bias.copy_(numbers(out, seed=8))
    return layer


def by_hand(layer: SLTrainLinear, scale: float) -> Tensor:
    sparse = torch.zeros(layer.out_features * layer.in_features, dtype=DOUBLE)
    sparse[layer.sparse_index.long()] = layer.sparse_value.detach()
    return scale * layer.lora_B.detach() @ layer.lora_A.detach() + sparse.view(layer.out_features, -1)


@ROUTES
@pytest.mark.parametrize("size", [(12, 8), (8, 12)])
@pytest.mark.parametrize("train_scaling", [False, True])
def test_output_and_gradients_are_those_of_the_dense_weight(
    route: Any, size: tuple[int, int], train_scaling: bool
) -> None:
    layer = layer_of(*size, route=route, train_scaling=train_scaling)
    scale = float(torch.ones(()).tanh()) if train_scaling else 2.0
    weight = by_hand(layer, scale)
    x = numbers(2, 5, size[1])
    torch.testing.assert_close(
        layer(x), x @ weight.mT + layer.bias, rtol=0, atol=1e-6 if train_scaling else 1e-12
    )
    torch.testing.assert_close(layer.dense_weight(), weight, rtol=0, atol=1e-6 if train_scaling else 1e-12)
    inputs = [x[0].clone().requires_grad_(), *layer.parameters()]
    names = [n for n, _ in layer.named_parameters()]

    def f(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(f, inputs)


def test_both_routes_agree() -> None:
    found = {}
    for route in ("dense", "factored"):
        layer = layer_of(route=route)
        x = numbers(7, 8).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        found[route] = [y.detach(), x.grad, *(p.grad for p in layer.parameters())]
    torch.testing.assert_close(found["dense"], found["factored"], rtol=0, atol=1e-10)


def test_the_start_is_the_sparse_part_alone() -> None:
    layer = SLTrainLinear(50, 40, r=4, sparsity=0.1, dtype=DOUBLE, seed=3)
    weight = layer.dense_weight()
    assert int(weight.count_nonzero()) == layer.sparse_value.numel() == 200
    bound = 50**-0.5
    for drawn in (layer.lora_A, layer.sparse_value):
        assert 0.9 * bound < float(drawn.detach().abs().max()) <= bound
        assert abs(float(drawn.detach().mean())) < 0.15 * bound
    assert not layer.lora_B.any() and not layer.bias.any()
    finetune = SLTrainLinear(50, 40, r=4, finetune=True)
    assert not finetune.sparse_value.any() and not finetune.lora_B.any() and bool(finetune.lora_A.any())


def test_bias_is_copied_and_the_fine_tuning_form_starts_at_the_layer() -> None:
    linear = nn.Linear(8, 12, dtype=DOUBLE)
    plain = SLTrainLinear.from_linear(linear, 9, r=2)
    assert torch.equal(plain.bias, linear.bias) and plain.weight is None
    tuned = SLTrainLinear.from_linear(linear, 9, r=2, finetune=True, sparsity=0.1)
    x = numbers(4, 8)
    torch.testing.assert_close(tuned(x), linear(x), rtol=0, atol=1e-12)
    assert not tuned.weight.requires_grad
    with torch.no_grad():
        tuned.sparse_value.fill_(1.0)
    torch.testing.assert_close(tuned.dense_weight(), linear.weight + tuned.structured_weight())
    torch.testing.assert_close(tuned(x), x @ tuned.dense_weight().mT + linear.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_counts(bias: bool) -> None:
    layer = layer_of(bias=bias, sparsity=0.23)
    assert layer.count_nonzero == 22  # ⌊0.23 · 96⌋
    counted = SLTrainLinear.count(8, 12, r=3, sparsity=0.23)
    assert counted == 3 * 20 + 22 == sum(p.numel() for p in layer.parameters()) - 12 * bias
    assert SLTrainLinear.count(8, 12, r=3, train_scaling=True) == 60 + 2 + 1


@pytest.mark.parametrize("draw", [random_support, balanced_support])
@pytest.mark.parametrize("count", [1, 30, 96, 150, 191, 192])
def test_supports_are_distinct_rising_and_a_function_of_the_key(draw: Any, count: int) -> None:
    support = draw(11, 12, 16, count)
    assert support.dtype == torch.int32 and len(support) == count
    assert bool((support.diff() > 0).all()) and int(support[0]) >= 0 and int(support[-1]) < 192
    assert torch.equal(support, draw(11, 12, 16, count))
    assert count == 192 or not torch.equal(support, draw(12, 12, 16, count))


def test_random_supports_are_uniform_over_entries() -> None:
    hits = torch.zeros(40)
    for key in range(2000):
        hits[random_support(key, 5, 8, 10).long()] += 1
    assert float((hits / 500 - 1).abs().max()) < 0.2  # 4.5 standard deviations


def test_balanced_supports_have_equal_rows() -> None:
    rows = balanced_support(3, 70, 9, 70 * 4 + 3).long() // 9
    counts = rows.bincount(minlength=70)
    assert counts[:3].tolist() == [5, 5, 5] and counts[3:].unique().tolist() == [4]


def test_support_stays_and_the_rest_of_the_weight_is_low_rank() -> None:
    layer = layer_of()
    before = layer.sparse_index.clone()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for t in range(5):
        optimizer.zero_grad()
        layer(numbers(6, 8, seed=t)).square().mean().backward()
        optimizer.step()
    assert torch.equal(layer.sparse_index, before)
    off = (layer.dense_weight() - 2.0 * layer.lora_B @ layer.lora_A).detach().flatten()
    off[before.long()] = 0
    assert float(off.abs().max()) < 1e-12


def test_a_random_support_makes_the_weight_full_rank() -> None:
    full = SLTrainLinear(64, 64, r=1, sparsity=0.2, dtype=DOUBLE).dense_weight()
    thin = layer_of(64, 64, r=2, sparsity=3 / 64**2)
    assert int(torch.linalg.matrix_rank(full)) == 64
    assert int(torch.linalg.matrix_rank(thin.dense_weight())) <= 5


@ROUTES
def test_kept_for_the_backward_pass_are_input_factors_and_values_only(route: Any) -> None:
    layer, kept = layer_of(40, 30, r=4, sparsity=0.05, route=route), []
    x = numbers(50, 30).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    storages = {t.untyped_storage().data_ptr(): t.numel() for t in kept if t.is_floating_point()}
    assert sum(storages.values()) == x.numel() + 4 * 70 + 60
    y.sum().backward()


def test_half_precision_and_autocast() -> None:
    x = numbers(9, 8).float()
    exact = layer_of().float()
    for route in ("dense", "factored"):
        half = layer_of(route=route).to(torch.bfloat16)
        y = half(x.bfloat16())
        assert y.dtype == torch.bfloat16 and half.sparse_index.dtype == torch.int32
        torch.testing.assert_close(y.float(), exact(x), rtol=0.05, atol=0.1)
        y.sum().backward()
        mixed = layer_of(route=route).float()
        with torch.autocast("cpu", torch.bfloat16):
            y = mixed(x)
        assert y.dtype == torch.bfloat16
        y.sum().backward()
        assert {p.grad.dtype for p in mixed.parameters()} == {torch.float32}
        torch.testing.assert_close(y.float(), exact(x), rtol=0.05, atol=0.1)


@pytest.mark.compiled
@ROUTES
def test_it_is_compiled_whole(route: Any) -> None:
    layer, x = layer_of(route=route), numbers(6, 8)
    whole = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(x), layer(x))
    whole(x).sum().backward()
    compiled = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    layer(x).sum().backward()
    torch.testing.assert_close(compiled, [p.grad for p in layer.parameters()])


def test_route_follows_the_number_of_tokens() -> None:
    layer = SLTrainLinear(768, 768, r=128, sparsity=0.03)
    assert not layer._dense(1, "cpu") and not layer._dense(4096, "cpu")
    assert not layer._dense(1, "cuda") and layer._dense(4096, "cuda")
    sparse = SLTrainLinear(64, 64, r=16, sparsity=0.5)
    assert not sparse._dense(1, "cpu") and sparse._dense(4096, "cpu")


def test_a_checkpoint_holds_the_seed_in_place_of_the_support() -> None:
    layer, other = layer_of(seed=5), layer_of(seed=6)
    state = layer.state_dict()
    assert set(state) == {"bias", "lora_A", "lora_B", "sparse_value", "support_seed"}
    assert not torch.equal(layer.sparse_index, other.sparse_index)
    other.load_state_dict(state)
    assert torch.equal(other.sparse_index, layer.sparse_index) and other.spec() == layer.spec()
    with torch.device("meta"):
        skeleton = SLTrainLinear(8, 12, r=3, sparsity=0.2, lora_alpha=6.0)
    skeleton.load_state_dict(state, assign=True)
    torch.testing.assert_close(skeleton(numbers(3, 8)), layer(numbers(3, 8)))


def test_a_mask_is_the_support_and_is_saved() -> None:
    mask = torch.zeros(12, 8, dtype=torch.bool)
    mask[0, 3], mask[11, 7] = True, True
    layer = layer_of(mask=mask)
    assert layer.sparse_index.tolist() == [3, 95] and layer.options["sparsity"] == 2 / 96
    assert "sparse_index" in layer.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 9}, r"r=9: a layer of shape \(12, 8\) takes a whole number from 1 to 8"),
        ({"r": 0}, "r is 0: give a whole number of at least 1"),
        ({"r": 2.5}, r"r is 2\.5: give a whole number"),
        ({"sparsity": 0.0}, r"sparsity=0\.0: give a share above 0 and below 1"),
        ({"sparsity": 1.0}, r"sparsity is 1.0: give a share in"),
        ({"sparsity": float("nan")}, "sparsity is nan: give a number"),
        (
            {"sparsity": 0.01},
            r"sparsity=0\.01: a layer of shape \(12, 8\) keeps no entry; give at least 0\.0104",
        ),
        ({"lora_alpha": 0.0}, r"lora_alpha is 0.0: give a positive number"),
        ({"support": "rows"}, "support='rows': choose one of random, row_balanced, explicit"),
        ({"route": "fast"}, "route='fast': choose one of auto, dense, factored"),
        ({"mask": torch.ones(3, 3, dtype=torch.bool)}, r"sparsity=1\.0|mask has shape \(3, 3\)"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        layer_of(**options)


def test_an_input_of_another_width_is_refused() -> None:
    with pytest.raises(InputError, match="x has 7 features, the layer takes 8"):
        layer_of()(numbers(2, 7))


def test_the_count_at_the_defaults_is_that_of_the_layer() -> None:
    layer = SLTrainLinear(64, 48, bias=False, r=3)
    assert SLTrainLinear.count(64, 48, r=3) == sum(p.numel() for p in layer.parameters())
