"""Bone and its relatives: against loops over their blocks, plain LoRA, and their stated ranks and costs."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from adapter_cases import MLP, Host, adapted, add, layers, rows, seeded
from torch import Tensor, nn

import eckart
from eckart.adapters import BoneConfig
from eckart.adapters.bone import Variant
from eckart.errors import InputError

DOUBLE = torch.float64
VARIANTS = get_args(Variant)


def one_layer(out: int = 12, width: int = 18, **options):
    """The model, its adapter, its weight and a random block."""
    model = adapted("bone", seeded(lambda: Host(nn.Linear(width, out)), DOUBLE), **options)
    [layer] = layers(model)
    adapter = layer.eckart_adapters["default"]
    with torch.no_grad():
        adapter.miss_block.normal_(generator=torch.Generator().manual_seed(0))
    return model, adapter, layer.base_layer.weight.detach(), adapter.miss_block.detach()


def by_loops(variant: str, r: int, weight: Tensor, block: Tensor) -> Tensor:
    """ΔW entry by entry, from the definition."""
    out, width = weight.shape
    delta = torch.zeros_like(weight)
    for o in range(out):
        for i in range(width):
            j, c, a, d = o // r, i // r, o % r, i % r
            if variant == "miss":
                delta[o, i] = block[d, o]
            elif variant == "mini":
                delta[o, i] = block[d, o % block.shape[1]]
            elif variant == "shard_out":
                delta[o, i] = block[o // (out // r), i]
            else:
                b = block[j if variant == "bat" else c]
                delta[o, i] = weight[o, c * r : (c + 1) * r] @ b[:, d] + b[a, d]
    return delta


@pytest.mark.parametrize(
    ("variant", "r", "options"),
    [
        ("miss", 6, {}),
        ("miss", 5, {}),
        ("miss", 12, {}),
        ("mini", 6, {"mini_r": 4}),
        ("mini", 7, {"mini_r": 12}),
        ("shard_out", 4, {}),
        ("bat", 6, {}),
        ("bat", 3, {}),
        ("bat-row", 6, {}),
        ("bat-row", 2, {}),
    ],
)
def test_update_is_that_of_the_definition(variant: str, r: int, options: dict) -> None:
    model, adapter, weight, block = one_layer(r=r, variant=variant, **options)
    delta = by_loops(variant, r, weight, block)
    torch.testing.assert_close(adapter.delta_weight(), delta, rtol=1e-12, atol=1e-13)
    x = rows(width=18, dtype=DOUBLE)
    base = seeded(lambda: Host(nn.Linear(18, 12)), DOUBLE)(x)
    torch.testing.assert_close(model(x), base + x @ delta.T, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("r", [6, 5])
def test_miss_is_lora_with_a_tiled_identity(r: int) -> None:
    _, adapter, _, block = one_layer(r=r)
    a, b = adapter.factors()
    identity = torch.eye(r, dtype=DOUBLE)
    assert torch.equal(a, torch.cat([identity] * 4, dim=1)[:, :18])
    assert torch.equal(b, block.T)


@pytest.mark.parametrize(
    ("variant", "rank", "options"),
    [
        ("miss", 6, {"r": 6}),
        ("mini", 4, {"r": 6, "mini_r": 4}),
        ("shard_out", 6, {"r": 6}),
        ("bat", 12, {"r": 6}),
        ("bat-row", 12, {"r": 6}),
    ],
)
def test_rank(variant: str, rank: int, options: dict) -> None:
    assert torch.linalg.matrix_rank(one_layer(variant=variant, **options)[1].delta_weight()) == rank


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_is_the_pull_back_of_the_weight_gradient(variant: str) -> None:
    model, adapter, weight, _ = one_layer(r=6, variant=variant)
    x, g = rows(width=18, dtype=DOUBLE), rows(width=12, dtype=DOUBLE, seed=2)
    model(x).backward(g)
    dense = g.T @ x
    blocks = dense.view(2, 6, 3, 6)  # j a c d
    inputs = weight.view(2, 6, 3, 6)
    expected = {
        "miss": lambda: dense.view(12, 3, 6).sum(1).T,
        "mini": lambda: dense.view(2, 6, 3, 6).sum((0, 2)).T,
        "shard_out": lambda: dense.view(6, 2, 18).sum(1),
        "bat": lambda: torch.einsum("jacb,jacd->jbd", inputs, blocks) + blocks.sum(2),
        "bat-row": lambda: torch.einsum("jacb,jacd->cbd", inputs, blocks) + blocks.sum(0).transpose(0, 1),
    }[variant]()
    torch.testing.assert_close(adapter.miss_block.grad, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("r", [5, 6, 7, 9, 12])
def test_narrow_and_wide_blocks_meet_the_same_slices(r: int) -> None:
    """By a product with [I I … I] up to 6 columns, by sums beyond; r divides the 18 inputs or does not."""
    model, adapter, weight, block = one_layer(r=r, route="factored")
    x, g = rows(width=18, dtype=DOUBLE).requires_grad_(), rows(width=12, dtype=DOUBLE, seed=2)
    y = model(x)
    y.backward(g)
    delta = by_loops("miss", r, weight, block)
    [layer] = layers(model)
    torch.testing.assert_close(y, layer.base_layer(x) + x @ delta.T)
    torch.testing.assert_close(x.grad, g @ (weight + delta))
    slices = torch.nn.functional.pad(x.detach(), (0, -18 % r)).view(len(x), -1, r).sum(1)
    torch.testing.assert_close(adapter.miss_block.grad, slices.T @ g)


@pytest.mark.parametrize("options", [{}, {"variant": "mini"}, {"r": 7}])
def test_keeps_only_block_sums(options: dict) -> None:
    """What the backward pass keeps does not grow with the input's width."""

    def kept(width: int) -> int:
        base = seeded(lambda: Host(nn.Linear(width, 16)))
        model = adapted("bone", base, **{"r": 8, "route": "factored", "init_weights": False, **options})
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(rows(10, width))
        return sum(sizes)

    assert kept(40) == kept(400) <= 10 * 8 + 8 * 16 + 10


@pytest.mark.parametrize("route", ["factored", "folded"])
def test_bat_keeps_no_matrix(route: str) -> None:
    base = seeded(lambda: Host(nn.Linear(48, 32)))
    model = adapted("bone", base, r=8, variant="bat", route=route, init_weights=False)
    frozen = layers(model)[0].base_layer.weight.untyped_storage().data_ptr()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(rows(5, 48))
    assert all(t.numel() < 32 * 48 for t in kept if t.untyped_storage().data_ptr() != frozen)


def test_bat_folds_a_weight_that_lies_by_columns_too() -> None:
    _, adapter, weight, _ = one_layer(r=6, variant="bat")
    x, columns = rows(5, 18).to(DOUBLE), weight.t().contiguous().t()
    torch.testing.assert_close(adapter.folded(x, columns, None, 2.0), adapter.folded(x, weight, None, 2.0))


@pytest.mark.parametrize("variant", ["bat", "bat-row"])
def test_bat_reads_the_weight_from_before_a_merge(variant: str) -> None:
    model, adapter, weight, _ = one_layer(r=6, variant=variant)
    delta = adapter.delta_weight().detach()
    model.merge_adapter()
    assert torch.equal(adapter.delta_weight(), delta)
    model.unmerge_adapter()
    assert torch.equal(layers(model)[0].base_layer.weight, weight)


def test_bat_blocks_can_be_inverted() -> None:
    """W_jc = (W'_jc − B_j)(I + B_j)⁻¹, the paper's own way back."""
    _, adapter, weight, _ = one_layer(r=6, variant="bat")
    with torch.no_grad():
        adapter.miss_block.mul_(0.05)
    merged = (weight + adapter.delta_weight().detach()).view(2, 6, 3, 6).transpose(1, 2)
    block = adapter.miss_block.detach().unsqueeze(1)
    back = (merged - block) @ torch.linalg.inv(torch.eye(6, dtype=DOUBLE) + block)
    torch.testing.assert_close(back.transpose(1, 2).reshape(12, 18), weight, rtol=0, atol=1e-10)


def test_adapters_of_different_variants_add_up_on_one_layer() -> None:
    base = seeded(lambda: Host(nn.Linear(18, 12)), DOUBLE)
    x = rows(width=18, dtype=DOUBLE)
    plain = base(x)
    model = adapted("bone", base, r=6, init_weights=False)
    alone = [model(x) - plain]
    for variant in VARIANTS[1:]:
        add("bone", model, variant, r=6, variant=variant, init_weights=False)
        model.set_adapter(variant)
        alone.append(model(x) - plain)
    model.base_model.set_adapter(["default", *VARIANTS[1:]])
    torch.testing.assert_close(model(x), plain + sum(alone), rtol=1e-10, atol=1e-11)
    model.merge_adapter()
    torch.testing.assert_close(model(x), plain + sum(alone), rtol=1e-10, atol=1e-11)


def test_does_not_see_what_cancels_within_a_residue_class() -> None:
    model, *_ = one_layer(r=6)
    x = rows(width=18, dtype=DOUBLE)
    x[:, 12:] = -x[:, :6] - x[:, 6:12]
    base = seeded(lambda: Host(nn.Linear(18, 12)), DOUBLE)(x)
    torch.testing.assert_close(model(x), base, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("variant", "shape", "block"),
    [
        ("miss", (8, 12), (8, 8)),
        ("miss", (300, 80), (64, 300)),
        ("mini", (90, 80), (64, 45)),
        ("shard_out", (90, 80), (45, 80)),
        ("bat", (96, 144), (2, 48, 48)),
        ("bat", (7, 9), (7, 1, 1)),
        ("bat-row", (96, 144), (3, 48, 48)),
    ],
)
def test_default_r_suits_the_layer(variant: str, shape: tuple[int, int], block: tuple[int, ...]) -> None:
    model = adapted("bone", seeded(lambda: Host(nn.Linear(*shape[::-1]))), variant=variant)
    assert layers(model)[0].eckart_adapters["default"].miss_block.shape == block


def test_budgets_take_only_ranks_that_divide() -> None:
    model = eckart.adapt(seeded(MLP), "bone", variant="bat", target_modules=["up", "down"], budget=100)
    assert model.peft_config["default"].r == 3  # 24·3 + 6·3 = 90; 4 and 5 do not divide 12, 24 and 6
    model = eckart.adapt(seeded(MLP), "bone", target_modules=["up", "down"], budget=100)
    assert model.peft_config["default"].r == 3


def test_an_alias_is_the_method_and_no_variant() -> None:
    assert eckart.adapters.get_config("miss") is BoneConfig
    assert BoneConfig().variant == "miss"
    with pytest.raises(InputError, match="unknown method 'bat'"):
        eckart.adapters.get_config("bat")


def test_only_bat_depends_on_the_base() -> None:
    assert [BoneConfig(variant=variant).needs_base for variant in VARIANTS] == [
        False,
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "bat", "r": 5}, "r is 5, no divisor of out_features = 24 of layer up"),
        ({"variant": "bat-row", "r": 4, "target_modules": ["down"]}, "out_features = 6 of layer down"),
        ({"variant": "shard_out", "r": 5}, "r is 5, no divisor of out_features = 24 of layer up"),
        (
            {"variant": "mini", "r": 4, "mini_r": 5},
            "mini_r is 5, no divisor of out_features = 24 of layer up",
        ),
        (
            {"variant": "mini", "mini_r": 5},
            "mini_r is 5, no divisor of out_features = 24 of layer up",
        ),
        ({"mini_r": 2}, "it is of 'mini'"),
        ({"variant": "mini", "mini_r": 0}, "mini_r is 0"),
        ({"variant": "row"}, "give one of miss, mini, shard_out, bat, bat-row"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        adapted("bone", seeded(MLP), **options)
