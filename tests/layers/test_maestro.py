"""Maestro: factors at every rank, the lasso, the draws, dropping ranks, cutting, resuming, bad input."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from eckart.errors import InputError
from eckart.layers import (
    MaestroConv2d,
    MaestroLinear,
    OrderedDropout,
    convert,
    cut,
    prune,
    recalibrate,
    structured_layers,
    to_dense,
    trained_parameters,
)
from eckart.layers._cutting import ranks_for
from eckart.layers._structured import build_layer

DOUBLE = torch.float64


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def linear_of(out: int = 6, width: int = 9, dtype: torch.dtype = DOUBLE) -> nn.Linear:
    linear = nn.Linear(width, out, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(numbers(out, width, seed=1))
        linear.bias.copy_(numbers(out, seed=2))
    return linear


def network(seed: int = 0, widths: tuple[int, ...] = (8, 6, 5, 3)) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return convert(nn.Sequential(*layers[:-1], nn.ReLU(), layers[-1]), "maestro", target_modules=r"\d+")


def conv_of(**options: Any) -> nn.Conv2d:
    torch.manual_seed(3)
    return nn.Conv2d(3, 10, (3, 2), dtype=DOUBLE, **options)


@pytest.mark.parametrize("size", [(6, 9), (9, 6)])
def test_the_start_is_the_dense_layer_and_every_rank_its_best_approximation(size: tuple[int, int]) -> None:
    linear, x = linear_of(*size), numbers(2, 4, size[1])
    layer = MaestroLinear.from_linear(linear)
    torch.testing.assert_close(layer(x), linear(x), rtol=0, atol=1e-12)
    u, s, vh = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
    for rank in range(1, 7):
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        torch.testing.assert_close(layer.cut(rank)(x), x @ best.mT + linear.bias, rtol=0, atol=1e-12)
        layer.use(rank)
        torch.testing.assert_close(layer.train()(x), layer.cut(rank)(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(layer.eval()(x), linear(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.importance(hierarchical=False), s)  # a balanced start
    single = MaestroLinear.from_linear(linear_of(*size, dtype=torch.float32))
    torch.testing.assert_close(single(x.float()), linear(x).float(), rtol=0, atol=1e-5)


def test_every_whole_rank_of_25_is_that_rank() -> None:
    layer = MaestroLinear.from_linear(linear_of(25, 30))
    for rank in range(1, 26):
        layer.use(rank)
        assert int(layer.gate.sum()) == rank == len(layer.cut(rank).low_rank)


@pytest.mark.parametrize("hierarchical", [True, False])
def test_lasso_and_importance_are_their_definitions(hierarchical: bool) -> None:
    layer = MaestroLinear.from_linear(linear_of())
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(numbers(*p.shape, seed=5))
    u, v = layer.out_network.weight, layer.in_network.weight
    tails = [(u[:, b:], v[b:]) if hierarchical else (u[:, b], v[b]) for b in range(6)]
    lasso = torch.stack([a.norm() + b.norm() for a, b in tails])
    torch.testing.assert_close(layer.group_lasso(hierarchical), lasso)
    found = layer.importance(hierarchical)
    torch.testing.assert_close(found, torch.stack([a.norm() * b.norm() for a, b in tails]))
    assert not hierarchical or bool((found[1:] <= found[:-1]).all())
    parameters = [v, u]

    def f(a: Tensor, b: Tensor) -> Tensor:
        state = {"in_network.weight": a, "out_network.weight": b}
        return torch.func.functional_call(
            _Lasso(layer, hierarchical), {f"layer.{k}": t for k, t in state.items()}, ()
        )

    assert torch.autograd.gradcheck(f, parameters)


class _Lasso(nn.Module):
    def __init__(self, layer: MaestroLinear, hierarchical: bool) -> None:
        super().__init__()
        self.layer, self.hierarchical = layer, hierarchical

    def forward(self) -> Tensor:
        return self.layer.group_lasso(self.hierarchical)


def test_ranks_that_are_zero_get_no_nan_and_dropped_ones_count_nowhere() -> None:
    layer = MaestroLinear.from_linear(linear_of())
    with torch.no_grad():
        layer.in_network.weight[4:] = 0
        layer.out_network.weight[:, 4:] = 0
    layer.group_lasso().sum().backward()
    for p in (layer.in_network.weight, layer.out_network.weight):
        assert bool(p.grad.isfinite().all())
    assert not layer.in_network.weight.grad[4:].any() and layer.in_network.weight.grad[:4].any()
    before = layer.group_lasso()[:4]
    assert layer.shrink(1e-9) == 2 and layer.rank == 4
    assert layer.low_rank.tolist() == [True] * 4 + [False] * 2
    torch.testing.assert_close(layer.group_lasso(), torch.cat([before, torch.zeros(2, dtype=DOUBLE)]))


def test_shrinking_keeps_what_is_at_the_threshold_and_always_one_rank() -> None:
    layer = MaestroLinear.from_linear(linear_of())
    found = layer.importance().detach()
    assert layer.shrink(float(found[3])) == 2 and layer.rank == 4
    assert not layer.in_network.weight[4:].any() and not layer.out_network.weight[:, 4:].any()
    assert layer.shrink(1e9) == 3 and layer.low_rank.tolist() == [True] + [False] * 5
    with torch.no_grad():
        layer.in_network.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN or infinity: lower the learning rate"):
        layer.shrink(0.1)


def test_plain_importance_may_leave_holes_and_b_counts_what_is_left() -> None:
    layer = MaestroLinear.from_linear(linear_of()).train()
    with torch.no_grad():
        layer.in_network.weight[1] *= 1e-6
    assert layer.shrink(1e-3, hierarchical=False) == 1
    assert layer.low_rank.tolist() == [True, False, True, True, True, True]
    layer.use(2)
    assert layer.gate.tolist() == [True, False, True, False, False, False]
    x = numbers(3, 9)
    torch.testing.assert_close(layer(x), layer.cut(2)(x))
    v, u = layer.in_network.weight[[0, 2]], layer.out_network.weight[:, [0, 2]]
    torch.testing.assert_close(layer.cut(2).dense_weight(), (u @ v).detach())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "dilation": 2},
        {"stride": (1, 2), "padding": "valid", "bias": False},
        {"padding": "same", "dilation": (1, 2)},
    ],
)
def test_convolution(options: dict[str, Any]) -> None:
    conv, x = conv_of(**options), numbers(2, 3, 9, 11)
    layer = MaestroConv2d.from_module(conv)
    torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=1e-12)
    assert layer.conv_u.weight.shape == (10, 3, 3, 2) and layer.conv_v.weight.shape == (10, 10, 1, 1)
    u, s, vh = torch.linalg.svd(conv.weight.detach().flatten(1), full_matrices=False)
    torch.testing.assert_close(layer.importance(hierarchical=False), s)
    small = layer.cut(4)
    with torch.no_grad():
        conv.weight.copy_(((u[:, :4] * s[:4]) @ vh[:4]).view_as(conv.weight))
    torch.testing.assert_close(small(x), conv(x), rtol=0, atol=1e-12)
    layer.use(4)
    torch.testing.assert_close(layer.train()(x), conv(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(small.to_module()(x), conv(x), rtol=0, atol=1e-12)
    again = build_layer(json.loads(json.dumps(small.spec())), dtype=DOUBLE)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), small(x)) and again.spec() == small.spec()


def test_a_sweep_draws_every_pair_once_and_the_seed_decides_it() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rule = OrderedDropout(0.0, shrink_every=0, seed=4).attach(model, optimizer)
    ranks = [layer.rank for layer in rule.layers.values()]
    assert ranks == [6, 5, 3]
    seen, order = Counter(), []
    for _ in range(2 * sum(ranks)):
        less = [i for i, (b, r) in enumerate(zip(rule.drawn, ranks, strict=True)) if b < r]
        assert len(less) <= 1
        seen[tuple(rule.drawn)] += 1
        order.append(tuple(rule.drawn))
        optimizer.step()
    whole = tuple(ranks)
    assert seen[whole] == 6  # of each layer its last rank, in each sweep
    assert set(seen.values()) == {2, 6} and len(seen) == 5 + 4 + 2 + 1
    assert order[:14] != order[14:] and Counter(order[:14]) == Counter(order[14:])
    rule.detach()
    other = OrderedDropout(0.0, shrink_every=0, seed=5).attach(model, optimizer)
    assert [other.drawn] != [list(order[0])] or other._sweep.tolist() != rule._sweep.tolist()


def test_across_layers_every_layer_draws_its_own() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rule = OrderedDropout(0.0, sampling="across_layers", shrink_every=0).attach(model, optimizer)
    drawn = []
    for _ in range(300):
        drawn.append(rule.drawn)
        optimizer.step()
    for i, r in enumerate((6, 5, 3)):
        count = Counter(row[i] for row in drawn)
        assert set(count) == set(range(1, r + 1)) and max(count.values()) < 2.2 * 300 / r
    assert any(a[0] < 6 and a[1] < 5 for a in drawn)


def test_layers_called_in_another_order_have_their_own_ranks() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(6, 4), nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    torch.manual_seed(0)
    model = convert(Backwards(), "maestro", target_modules=["first", "last"]).train()
    rule = OrderedDropout(shrink_every=0).attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    rule._use([2, 3])
    x = numbers(3, 5, dtype=torch.float32)
    torch.testing.assert_close(model(x), model.last.cut(2)(model.first.cut(3)(x)))
    with rule.full():
        torch.testing.assert_close(model(x), model.last.cut(4)(model.first.cut(5)(x)))
    assert int(model.last.gate.sum()) == 2
    rule.detach()
    assert model.last.gate is None


def test_a_linear_map_is_recovered_in_every_prefix() -> None:
    torch.manual_seed(0)
    u, _ = torch.linalg.qr(numbers(6, 6, seed=1))
    v, _ = torch.linalg.qr(numbers(9, 6, seed=2))
    s = torch.tensor([8.0, 5.0, 3.0, 0, 0, 0], dtype=DOUBLE)
    target = (u * s) @ v.mT
    model = nn.Sequential(MaestroLinear.from_linear(nn.Linear(9, 6, bias=False, dtype=DOUBLE))).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    rule = OrderedDropout(0.0, shrink_every=0).attach(model, optimizer)
    identity = torch.eye(9, dtype=DOUBLE)
    for _ in range(3000):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(identity), target.mT).backward()
        optimizer.step()
    rule.detach()
    for rank in range(1, 7):
        best = (u[:, :rank] * s[:rank]) @ v[:, :rank].mT
        assert float((model[0].cut(rank).dense_weight() - best).norm()) < 0.02 * float(target.norm()), rank


def test_a_linear_autoencoder_keeps_three_ranks_for_three_dimensions() -> None:
    torch.manual_seed(0)
    x = torch.linalg.qr(numbers(10, 3))[0].mT * 10**0.5
    model = nn.Sequential(MaestroLinear.from_linear(nn.Linear(10, 10, bias=False, dtype=DOUBLE))).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rule = OrderedDropout(1e-2, 1e-3, hierarchical=False, shrink_every=0).attach(model, optimizer)
    for _ in range(2500):
        optimizer.zero_grad()
        with rule.full():
            loss = nn.functional.mse_loss(model(x), x)
        (loss + nn.functional.mse_loss(model(x), x)).backward()
        optimizer.step()
    found = model[0].importance(hierarchical=False).detach().sort(descending=True).values
    assert float(found[2]) > 0.95 and float(found[3]) < 1e-4, found
    assert rule.shrink() == {"0": 3}
    loss = nn.functional.mse_loss(model.eval()(x), x)
    assert float(loss) < 1e-3


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        x = numbers(16, 8, seed=step, dtype=torch.float32)
        nn.functional.mse_loss(model(x), x[:, :3].sin()).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_dropped_ranks_stay_zero_and_have_no_moments(kind: Any) -> None:
    model = network().train()
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.05, weight_decay=0.1, **options)
    rule = OrderedDropout(1e-4, 0.5, shrink_every=3).attach(model, optimizer, steps=20)
    trained(model, optimizer, range(3))
    dropped = [~layer.low_rank for layer in rule.layers.values()]
    assert any(bool(d.any()) for d in dropped)
    for layer in rule.layers.values():
        for dim, p in enumerate(layer.weights):
            for value in optimizer.state[p].values():
                if value.shape == p.shape:
                    assert not value.index_select(dim, (~layer.low_rank).nonzero().flatten()).any()
    trained(model, optimizer, range(3, 6))
    for layer, was in zip(rule.layers.values(), dropped, strict=True):
        assert not layer.in_network.weight[was].any() and not layer.out_network.weight[:, was].any()
    assert all(b <= layer.rank for b, layer in zip(rule.drawn, rule.layers.values(), strict=True))


def test_the_lasso_is_in_the_gradient_of_sgd_and_a_step_of_its_own_elsewhere() -> None:
    start = network()
    layer = start[0]
    wanted = torch.autograd.grad(layer.group_lasso().sum(), layer.in_network.weight)[0]
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        model = network()
        options = {"weight_decay": 0.0} if kind is torch.optim.AdamW else {}
        optimizer = kind(model.parameters(), lr=0.01, **options)
        OrderedDropout(0.3, shrink_every=0).attach(model, optimizer)
        optimizer.step()  # no gradient of a loss
        moved = layer.in_network.weight - model[0].in_network.weight
        torch.testing.assert_close(moved, 0.01 * 0.3 * wanted, rtol=1e-3, atol=1e-7)


def test_a_resumed_training_gives_the_same_numbers(tmp_path: Path) -> None:
    def begin(model: nn.Module) -> tuple[torch.optim.Optimizer, OrderedDropout]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        return optimizer, OrderedDropout(1e-3, 0.3, shrink_every=4).attach(model, optimizer, steps=20)

    whole = network().train()
    optimizer, rule = begin(whole)
    trained(whole, optimizer, range(7))
    rule.save(tmp_path / "rule.safetensors")
    state = {k: v.clone() for k, v in whole.state_dict().items()}
    held = (
        json.loads(json.dumps(optimizer.state_dict()["param_groups"])),
        {k: {n: t.clone() for n, t in v.items()} for k, v in optimizer.state_dict()["state"].items()},
    )
    trained(whole, optimizer, range(7, 15))
    again = network(seed=9).train()
    other, second = begin(again)
    again.load_state_dict(state)
    other.load_state_dict({"param_groups": held[0], "state": held[1]})
    second.load(tmp_path / "rule.safetensors")
    assert second.step == 7
    trained(again, other, range(7, 15))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert second.drawn == rule.drawn and second.step == 15
    with pytest.raises(InputError, match="the state of maestro is of ranks"):
        _load(tmp_path)


def _load(place: Path) -> None:
    model = network(widths=(8, 7, 7, 3))
    OrderedDropout().attach(model, torch.optim.SGD(model.parameters(), lr=1.0)).load(
        place / "rule.safetensors"
    )


def test_the_first_shrinking_is_after_a_tenth_of_the_training() -> None:
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rule = OrderedDropout(0.0, 1e9).attach(model, optimizer, steps=30)
    trained(model, optimizer, range(2))
    assert rule.layers["0"].rank == 6
    trained(model, optimizer, range(1))
    assert rule.layers["0"].rank == 1


def test_pruned_and_cut_networks() -> None:
    model = network(widths=(8, 12, 12, 3)).eval()
    x = numbers(5, 8, dtype=torch.float32)
    layers = structured_layers(model)
    layers["1"].shrink(float(layers["1"].importance()[7]))
    before = model(x)
    same = cut(model)
    assert model[1].rank == 8 and type(same[1]) is nn.Linear  # 8 · 24 > 144
    torch.testing.assert_close(same(x), before, rtol=0, atol=1e-5)
    assert type(same[0]) is nn.Linear and type(same[3]) is nn.Linear
    small = cut(model, 0.5)
    ranks = {n: layer.rank for n, layer in structured_layers(small).items()}
    weights = sum(p.numel() for p in small.parameters() if p.dim() > 1)
    assert weights <= 0.5 * (8 * 12 + 144 + 36) and ranks
    given = cut(model, ranks={"1": 5})
    assert given[1].rank == 5 and given[1].in_network.weight.shape == (5, 12)
    assert sum(p.numel() for p in given[1].parameters()) == 5 * 24 + 12
    six = cut(model, ranks={"1": 6})  # 6 · 24 = 144: no more numbers than the dense layer
    assert isinstance(six[1], MaestroLinear)
    masked = model.train()[1]
    masked.use(5)
    torch.testing.assert_close(given(x), model(x), rtol=0, atol=1e-6)
    masked.use(None)
    assert prune(model) is model and len(model[1].low_rank) == 8
    torch.testing.assert_close(model.eval()(x), before, rtol=0, atol=1e-6)
    assert isinstance(model[0], MaestroLinear)


def test_the_least_important_rank_goes_first() -> None:
    model = nn.Sequential(nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.linspace(10, 9, 12)))
        model[1].weight.copy_(torch.diag(torch.linspace(1, 0.1, 12)))
    convert(model, "maestro", target_modules=r"\d")
    shares = [layer.importance() / layer.importance()[0] for layer in model]
    small = cut(model, 0.6)
    left = [layer.rank for layer in small]
    assert left[0] >= left[1] > 1 and 24 * sum(left) <= 0.4 * 288 < 24 * (sum(left) + 1)
    dropped = max(float(share[rank]) for share, rank in zip(shares, left, strict=True))
    assert dropped <= min(float(share[rank - 1]) for share, rank in zip(shares, left, strict=True))
    with torch.no_grad():
        model[0].in_network.weight.mul_(1e-3)  # scales of layers do not compare
    assert [layer.rank for layer in cut(model, 0.6)] == left


def test_batch_norms_are_recalibrated_to_the_average() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3)).train()
    convert(model, "maestro", target_modules=["0", "3"])
    small = cut(model, ranks={"0": 2})
    batches = [numbers(4, 2, 6, 6, seed=i, dtype=torch.float32) for i in range(3)]
    recalibrate(small, batches)
    with torch.no_grad():
        mean = torch.stack([small[0](x).mean((0, 2, 3)) for x in batches]).mean(0)
    torch.testing.assert_close(small[1].running_mean, mean)
    assert small.training and small[1].momentum == 0.1 and small[1].training
    with pytest.raises(InputError, match="batches is empty"):
        recalibrate(small, [])


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


IDS = torch.arange(24).view(2, 12)


def test_a_file_for_each_size_loads(tmp_path: Path) -> None:
    model, dense = convert(llama(), "maestro"), llama()
    torch.testing.assert_close(model(IDS).logits, dense(IDS).logits, rtol=0, atol=1e-5)
    counted = trained_parameters(dense, "maestro")
    assert counted == sum(p.numel() for p in model.parameters())
    for layer in structured_layers(model).values():
        layer.shrink(float(layer.importance()[12]))
    sizes = {"whole": model, "pruned": prune(convert(llama(), "maestro")), "half": cut(model, 0.5)}
    for name, one in sizes.items():
        one.save_pretrained(tmp_path / name)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert torch.equal(loaded(IDS).logits, one.eval()(IDS).logits), name
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert structured_layers(again)["model.layers.0.self_attn.q_proj"].rank == 13
    torch.testing.assert_close(cut(again, 0.5)(IDS).logits, sizes["half"](IDS).logits)
    torch.testing.assert_close(to_dense(again)(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.compiled
def test_compiling_bf16_and_checkpointing_keep_the_gradients() -> None:
    x = numbers(7, 8, dtype=torch.float32)
    model, plain = network().train(), network().train()
    rules = [
        OrderedDropout(shrink_every=0).attach(m, torch.optim.SGD(m.parameters(), lr=0.1))
        for m in (model, plain)
    ]
    torch._dynamo.reset()
    count = CompileCounter()
    fast = torch.compile(model, backend=count, fullgraph=True)
    for ranks in ([2, 5, 3], [6, 1, 3], [6, 5, 2]):
        for rule in rules:
            rule._use(list(ranks))
        fast(x).square().sum().backward()
        plain(x).square().sum().backward()
        for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, msg=name)
    assert count.frame_count == 1  # other ranks are no other program
    half = network().train().to(torch.bfloat16)
    OrderedDropout(shrink_every=0).attach(half, torch.optim.AdamW(half.parameters()))._use([6, 5, 2])
    y = half(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), plain(x), rtol=0.1, atol=0.1)
    assert half[0].low_rank.dtype == torch.bool and half[0].importance().dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gp_lambda": -1.0}, r"gp_lambda=-1\.0: give a number from 0 up"),
        ({"gp_lambda": float("nan")}, "gp_lambda=nan"),
        ({"threshold": float("inf")}, "threshold=inf"),
        ({"sampling": "pufferfish"}, "sampling='pufferfish': choose per_layer or across_layers"),
        ({"shrink_every": -1}, "shrink_every=-1: give a whole number"),
        ({"shrink_every": 2.5}, r"shrink_every=2\.5: give a whole number"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OrderedDropout(**options)


def test_bad_attaching_is_refused() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="Linear has no Maestro layer: convert"):
        OrderedDropout().attach(nn.Linear(2, 2), optimizer)
    with pytest.raises(InputError, match="the optimiser does not hold the factors of 0"):
        OrderedDropout().attach(model, torch.optim.SGD(network().parameters(), lr=0.1))
    with pytest.raises(InputError, match="shrink_every=30: the training ends after 20 steps"):
        OrderedDropout(shrink_every=30).attach(model, optimizer, steps=20)
    rule = OrderedDropout().attach(model, optimizer)
    with pytest.raises(InputError, match="attached already"):
        rule.attach(model, optimizer)
    with pytest.raises(InputError, match="another OrderedDropout acts on this optimiser"):
        OrderedDropout().attach(model, optimizer)
    with pytest.raises(InputError, match=r"rank=7: the layer has 6 ranks"):
        model[0].use(7)
    with pytest.raises(InputError, match=r"rank=0: the layer has 6 ranks"):
        model[0].cut(0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ratio": 1.0}, r"ratio=1\.0: give the share to remove"),
        ({"ratio": -0.1}, r"ratio=-0\.1: give the share to remove"),
        ({"ratio": 0.95}, r"ratio=0\.95: with one rank in each layer 33 numbers are left"),
        ({"ratio": 0.5, "ranks": {"0": 1}}, r"ratio=0\.5 and ranks are both given"),
        ({"ranks": {"x": 1}}, "ranks names x, which is no Maestro layer"),
        ({"ranks": {"0": 7}}, r"ranks\['0'\]=7: the layer has ranks from 1 to 6"),
    ],
)
def test_bad_cuts_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cut(network(), **given)


def test_convolutions_that_have_no_such_factors_and_ranks_that_are_too_large() -> None:
    for conv in (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")):
        model = nn.Sequential(nn.Linear(4, 4), conv)
        with pytest.raises(InputError, match="has no such factors: leave it out"):
            convert(model, "maestro", target_modules=r"\d")
        assert type(model[0]) is nn.Linear
    with pytest.raises(InputError, match=r"0: r=11: a layer of shape \(10, 18\)"):
        convert(nn.Sequential(conv_of()), "maestro", target_modules=["0"], r=11)
    with pytest.raises(InputError, match="holds NaN or infinity"):
        linear = linear_of()
        with torch.no_grad():
            linear.weight[0, 0] = torch.inf
        MaestroLinear.from_linear(linear)


@pytest.mark.parametrize(("ratio", "total"), [(0.0, 128), (0.5, 64), (0.51, 48), (0.75, 32)])
def test_a_size_that_is_just_met_is_met(ratio: float, total: int) -> None:
    """Two layers of 8 × 8 numbers, or 16 for each rank: never more than the dense matrix has."""
    ranks = ranks_for(structured_layers(network(widths=(8, 8, 8))), ratio)
    assert sum(min(16 * r, 64) for r in ranks.values()) == total
    with pytest.raises(InputError, match="with one rank in each layer 32 numbers are left, more than 32"):
        ranks_for(structured_layers(network(widths=(8, 8, 8))), 0.7501)
