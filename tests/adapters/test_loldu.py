"""LoLDU: the structure of its residual, every start, weights without full rank, and pivots that are stored."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from adapter_cases import MLP, Host, adapted, layers, rows, seeded
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eckart.adapters import LoLDUConfig, loldu
from eckart.adapters.loldu import InitMethod
from eckart.errors import InputError

DOUBLE = torch.float64


def one_layer(out: int = 9, width: int = 14, base: nn.Module | None = None, **options):
    """The model, its adapter and its weight."""
    base = base or seeded(lambda: Host(nn.Linear(width, out)), DOUBLE)
    model = adapted("loldu", base, **options)
    [layer] = layers(model)
    return model, layer.eckart_adapters["default"], layer.base_layer.weight.detach()


def move(adapter, seed: int = 0) -> Tensor:
    with torch.no_grad():
        adapter.vector_z.normal_(generator=torch.Generator().manual_seed(seed))
    return adapter.vector_z.detach()


@pytest.mark.parametrize("method", get_args(InitMethod))
@pytest.mark.parametrize("train_scaling", [False, True])
@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (8, 8)])
def test_starts_at_the_base_whatever_z_is(method: str, train_scaling: bool, shape: tuple[int, int]) -> None:
    model, adapter, _ = one_layer(
        *shape, r=5, lora_alpha=3.0, init_method=method, train_scaling=train_scaling
    )
    x = rows(width=shape[1], dtype=DOUBLE)
    assert torch.equal(model(x), seeded(lambda: Host(nn.Linear(*shape[::-1])), DOUBLE)(x))
    assert not adapter.delta_weight().any()


def test_values_of_the_starts() -> None:
    z = {m: one_layer(r=5, init_method=m)[1].vector_z0 for m in get_args(InitMethod)}
    _, adapter, weight = one_layer(r=5)
    pivots = adapter.pivots.long()
    b, a = adapter.lora_B, adapter.lora_A
    torch.testing.assert_close((b * z["lu"] @ a)[pivots], weight[pivots], rtol=0, atol=1e-12)
    mean = z["lu"].mean()
    torch.testing.assert_close(z["constant"], mean.expand(5))
    assert z["uniform"].abs().max() <= mean.abs() / 2
    assert z["s_uniform"].abs().max() <= 1
    assert z["s_uniform"].std() > 0.1
    assert len(set(z["normal"].tolist())) == len(set(z["s_normal"].tolist())) == 5
    assert torch.equal(z["ones"], torch.ones(5, dtype=DOUBLE))
    assert torch.equal(z["zeros"], torch.zeros(5, dtype=DOUBLE))


def test_residual_vanishes_on_the_pivot_rows_and_the_first_columns() -> None:
    _, adapter, weight = one_layer(r=4)
    with torch.no_grad():
        adapter.vector_z.copy_(-adapter.vector_z0)
    residual = weight + adapter.delta_weight().detach()
    assert residual[:, :4].abs().max() < 1e-13
    assert residual[adapter.pivots.long()].abs().max() < 1e-13
    assert torch.linalg.matrix_rank(residual) == 9 - 4


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_update_and_gradient_live_between_the_triangles(alpha: float | None) -> None:
    model, adapter, _ = one_layer(r=4, lora_alpha=alpha)
    z, sigma = move(adapter), 1.0 if alpha is None else alpha / 4
    b, a = adapter.lora_B, adapter.lora_A
    torch.testing.assert_close(adapter.delta_weight(), sigma * b * z @ a, rtol=1e-12, atol=1e-13)
    assert torch.linalg.matrix_rank(adapter.delta_weight()) == 4
    x, g = rows(width=14, dtype=DOUBLE), rows(width=9, dtype=DOUBLE, seed=2)
    model(x).backward(g)
    expected = sigma * (b.T @ g.T @ x @ a.T).diagonal()
    torch.testing.assert_close(adapter.vector_z.grad, expected, rtol=1e-10, atol=1e-12)


def test_trained_scaling_scales_the_whole_diagonal() -> None:
    model, adapter, weight = one_layer(r=4, lora_alpha=2.0, train_scaling=True)
    z = move(adapter)
    with torch.no_grad():
        adapter.scaling_factor.fill_(0.8)
    b, a, z0 = adapter.lora_B, adapter.lora_A, adapter.vector_z0
    residual = weight - 0.5 * b * z0 @ a
    torch.testing.assert_close(
        weight + adapter.delta_weight(), residual + 0.8 * b * (z0 + z) @ a, rtol=0, atol=1e-12
    )
    x, g = rows(width=14, dtype=DOUBLE), rows(width=9, dtype=DOUBLE, seed=2)
    model(x).backward(g)
    expected = (g * (x @ a.T * (z0 + z) @ b.T)).sum()
    torch.testing.assert_close(adapter.scaling_factor.grad[0], expected, rtol=1e-10, atol=1e-12)


DEFECTS = {
    "zero rows": lambda w: w[2:4].zero_(),
    "zero columns": lambda w: w[:, :3].zero_(),
    "equal rows": lambda w: w[1:].copy_(w[:1].expand_as(w[1:])),
    "zero": lambda w: w.zero_(),
}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_weights_without_full_rank_train(defect: str, dtype: torch.dtype) -> None:
    base = seeded(lambda: Host(nn.Linear(14, 9)), dtype)
    with torch.no_grad():
        DEFECTS[defect](base.layer.weight)
    model, adapter, _ = one_layer(base=base, r=9, train_scaling=True)
    move(adapter)
    x = rows(width=14, dtype=dtype)
    y = model(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert adapter.vector_z.grad.isfinite().all()
    dead = adapter.vector_z0 == 0
    assert dead.any()
    assert not adapter.vector_z.grad[dead].any()


def test_holds_nothing_square_in_the_outputs() -> None:
    tokens, out, width, r = 40, 300, 50, 4
    model = adapted(
        "loldu", seeded(lambda: Host(nn.Linear(width, out))), r=r, route="factored", init_weights=False
    )
    assert sum(t.numel() for t in model.buffers()) <= r * (out + width + 2)
    frozen = {t.untyped_storage().data_ptr() for t in [*model.buffers(), layers(model)[0].base_layer.weight]}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(rows(tokens, width))
    sizes = [t.numel() for t in kept if t.untyped_storage().data_ptr() not in frozen]
    assert sum(sizes) <= tokens * r + 2 * r


def test_file_holds_two_numbers_for_each_pivot(tmp_path: Path) -> None:
    model = adapted("loldu", seeded(MLP), r=5, init_weights=False)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {key.rpartition(".")[2]: value.dtype for key, value in stored.items()} == {
        "vector_z": torch.float32,
        "pivots": torch.int32,
    }
    assert all(value.shape == (5,) for value in stored.values())


@pytest.mark.parametrize("method", ["lu", "normal"])
def test_stored_pivots_are_followed_where_this_machine_would_choose_others(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"r": 5, "init_method": method, "train_scaling": True, "init_weights": False}
    model, x = adapted("loldu", seeded(MLP), **options), rows()
    outputs = model(x)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(loldu, "row_order", lambda w: torch.arange(len(w)).flip(0))
    fresh = adapted("loldu", seeded(MLP), r=5)
    assert not torch.equal(
        layers(fresh)[0].eckart_adapters["default"].pivots, layers(model)[0].eckart_adapters["default"].pivots
    )
    torch.testing.assert_close(PeftModel.from_pretrained(seeded(MLP), tmp_path)(x), outputs, rtol=0, atol=0)


@pytest.mark.parametrize("pivots", [[0, 1, 2, 3, 3], [0, 1, 2, 3, 99], [-1, 0, 1, 2, 3]])
def test_altered_pivots_are_refused(pivots: list[int], tmp_path: Path) -> None:
    adapted("loldu", seeded(MLP), r=5).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    stored = load_file(path)
    key = next(key for key in stored if key.endswith("pivots"))
    save_file(stored | {key: torch.tensor(pivots, dtype=torch.int32)}, path)
    with pytest.raises(InputError, match=r"pivots of layer .* 5 different row numbers below"):
        PeftModel.from_pretrained(seeded(MLP), tmp_path)


def test_trained_on_float32_loads_on_a_bfloat16_copy(tmp_path: Path) -> None:
    """What is stored is the change, so that the rounding of the base does not drown it."""
    model = adapted("loldu", seeded(MLP), r=3)
    with torch.no_grad():
        for layer in layers(model):
            layer.eckart_adapters["default"].vector_z.fill_(1e-3)
    model.save_pretrained(tmp_path)
    deltas = [layer.get_delta_weight("default").detach() for layer in layers(model)]
    loaded = PeftModel.from_pretrained(model.unload().to(torch.bfloat16), tmp_path)
    for layer, delta in zip(layers(loaded), deltas, strict=True):
        assert (layer.get_delta_weight("default").float() - delta).norm() < 0.1 * delta.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_method": "svd"}, "init_method is 'svd': give one of lu, constant"),
        ({"lora_alpha": 0.0}, "lora_alpha is 0"),
    ],
)
def test_refused_options(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LoLDUConfig(**options)
