"""Intrinsic dimension: its projections, what they move, and what a checkpoint of it holds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from adapter_cases import MLP, Host, adapted, assert_untouched, config, layers, rows, seeded, snapshot, train
from peft import PeftModel
from torch import Tensor, nn

import eckart
from eckart.adapters import IntrinsicDimensionConfig, target_shapes, trainable_parameters, walk
from eckart.adapters.intrinsic_dimension import Sparse
from eckart.errors import InputError

DOUBLE = torch.float64
LAWS = pytest.mark.parametrize("law", ["fastfood", "dense", "sparse"])
STRUCTURES = pytest.mark.parametrize("structure", ["global", "per-tensor", "said"])


def subspace(model: nn.Module) -> nn.Module:
    """What all layers share."""
    [(_, _, _, first), *_] = walk(model)
    return first.shared["subspace"]


def projection(model: nn.Module) -> Tensor:
    """P (D, d), column by column."""
    shared = subspace(model)
    columns = []
    with torch.no_grad():
        for j in range(len(shared.theta_d)):
            shared.theta_d.zero_()[j] = 1
            columns.append(torch.cat(shared()))
        shared.theta_d.zero_()
    return torch.stack(columns, 1)


@LAWS
def test_columns_are_of_unit_length(law: str) -> None:
    model = adapted("intrinsic-dimension", seeded(MLP, DOUBLE), d=40, projection=law, train_bias=True)
    p = projection(model)
    assert p.shape == (12 * 24 + 24 + 24 * 6 + 6, 40)
    lengths = p.norm(dim=0)
    assert (lengths - 1).abs().max() < (0.15 if law == "fastfood" else 1e-6)
    cosines = (p.t() @ p).fill_diagonal_(0).abs().sum() / (40 * 39)
    assert cosines < 2 * math.sqrt(2 / (math.pi * len(p)))


def test_fastfood_columns_are_exact_at_a_power_of_two() -> None:
    model = adapted("intrinsic-dimension", seeded(lambda: Host(nn.Linear(16, 32, bias=False)), DOUBLE), d=50)
    torch.testing.assert_close(projection(model).norm(dim=0), torch.ones(50, dtype=DOUBLE))


@LAWS
@STRUCTURES
def test_a_step_of_descent_is_a_step_along_the_projected_gradient(law: str, structure: str) -> None:
    """θ_D ← θ_D − lr P Pᵀ g, weights and biases, against the gradient of the trained base itself."""
    model = adapted(
        "intrinsic-dimension", seeded(MLP, DOUBLE), d=30, projection=law, structure=structure, train_bias=True
    )
    shared = subspace(model)
    p, base = projection(model), seeded(MLP, DOUBLE)
    base(rows(dtype=DOUBLE)).square().mean().backward()
    g = torch.cat([t.grad.flatten() for part in (base.down, base.up) for t in (part.weight, part.bias)])
    model(rows(dtype=DOUBLE)).square().mean().backward()
    torch.testing.assert_close(shared.theta_d.grad, p.t() @ g)
    with torch.no_grad():
        shared.theta_d.sub_(0.1 * shared.theta_d.grad)
    torch.testing.assert_close(torch.cat(shared()), -0.1 * p @ (p.t() @ g))


@STRUCTURES
def test_counts_and_caps(structure: str) -> None:
    options = {"structure": structure, "target_modules": ["up", "down"]}
    shapes = target_shapes(seeded(MLP), config("intrinsic-dimension", **options))
    more = 2 if structure == "said" else 0
    for d, wanted in ((5, 5), (10**6, 432 + more), (None, 200 + more)):
        model = adapted("intrinsic-dimension", seeded(MLP), d=d, **options)
        assert trainable_parameters(model) == wanted
        assert config("intrinsic-dimension", d=d, **options).trainable_parameters(shapes) == wanted
    assert list(config("intrinsic-dimension", **options).knob_values(shapes)) == list(
        range(1 + more, 433 + more)
    )


def test_said_scales_each_tensor() -> None:
    model = adapted("intrinsic-dimension", seeded(MLP, DOUBLE), d=12, structure="said", init_weights=False)
    shared = subspace(model)
    assert len(shared.said_lambda) == 2 and len(shared.theta_d) == 10
    before = [layer.get_delta_weight("default").detach() for layer in layers(model)]
    with torch.no_grad():
        shared.said_lambda[1] *= 3  # tensors are in the order of their names: down, up
    after = [layer.get_delta_weight("default") for layer in layers(model)]
    torch.testing.assert_close(after, [3 * before[0], before[1]])


def test_biases_only_where_there_are_some_and_when_asked() -> None:
    base = lambda: seeded(lambda: nn.ModuleDict({"up": nn.Linear(4, 3), "down": nn.Linear(3, 2, bias=False)}))  # noqa: E731
    for train_bias, wanted in ((False, 18), (True, 21)):
        model = adapted("intrinsic-dimension", base(), d=100, train_bias=train_bias, init_weights=False)
        assert trainable_parameters(model) == wanted
        for name, _, _, adapter in walk(model):
            assert (adapter.delta_bias() is not None) == (train_bias and name == "up")


def test_one_transform_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    from eckart.adapters import intrinsic_dimension as module

    calls, transform = [], module.fastfood
    monkeypatch.setattr(module, "fastfood", lambda *args: calls.append(0) or transform(*args))
    model = adapted("intrinsic-dimension", seeded(MLP), init_weights=False, train_bias=True).train()
    model(rows()).sum().backward()
    assert len(calls) == 1


def test_the_toy_problem_has_ten_dimensions() -> None:
    """Σ_{i ≤ 10} (sum of block i − i)² over 1,000 numbers: solved in 10 random dimensions, not in 9."""
    goal = torch.arange(1.0, 11, dtype=DOUBLE)
    for d, solved in ((9, False), (10, True)):
        model = adapted(
            "intrinsic-dimension", Host(nn.Linear(100, 10, bias=False, dtype=DOUBLE)), d=d, projection="dense"
        )
        blocks = projection(model).view(10, 100, d).sum(1)
        best = torch.linalg.lstsq(blocks, goal[:, None]).solution
        assert ((blocks @ best).flatten() - goal).square().sum().lt(1e-16).item() is solved


def test_sparse_entries_follow_their_law() -> None:
    block = Sparse(10_000, 50, 7, DOUBLE, keep=False)
    counts = torch.bincount(block.columns, minlength=50)
    assert abs(counts.double().mean() - 100) < 6 * math.sqrt(100 / 50)
    assert counts.min() > 50 and counts.max() < 160
    torch.testing.assert_close(
        block.values.abs() * counts[block.columns].sqrt(), torch.ones_like(block.values)
    )
    assert abs((block.values > 0).double().mean() - 0.5) < 0.05
    pairs = block.rows + 10_000 * block.columns
    assert len(pairs.unique()) == len(pairs) and int(block.rows.max()) < 10_000
    assert Sparse(1, 1, 0, DOUBLE, keep=False)(torch.ones(1, dtype=DOUBLE)).abs() == 1


@LAWS
def test_a_checkpoint_is_the_seed_and_the_vector(law: str, tmp_path: Path) -> None:
    model = adapted("intrinsic-dimension", seeded(MLP), d=64, projection=law)
    train(model, rows(), lr=1.0)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 4 * 64 + 1000
    assert torch.equal(PeftModel.from_pretrained(seeded(MLP), tmp_path)(rows()), model(rows()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d": 0}, "d is 0: give at least 1"),
        ({"projection": "fourier"}, "projection is 'fourier': give one of fastfood, dense, sparse"),
        ({"structure": "did"}, "structure is 'did': give one of global, per-tensor, said"),
        ({"d": 2, "structure": "said"}, "d is 2, but 2 tensors have a λ each: give more than 2"),
        ({"rank_pattern": {"up": 2}}, "rank_pattern is given, but intrinsic-dimension has no ranks"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    base = seeded(MLP)
    before = snapshot(base)
    with pytest.raises(InputError, match=message):
        eckart.adapt(base, "intrinsic-dimension", target_modules=["up", "down"], **options)
    assert_untouched(base, before)


def test_defaults() -> None:
    chosen = IntrinsicDimensionConfig()
    assert (chosen.d, chosen.projection, chosen.structure, chosen.train_bias) == (
        None,
        "fastfood",
        "global",
        False,
    )
