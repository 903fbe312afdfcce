"""MoS: pools and indices, the rank they buy, plain LoRA as the special case, and refusals."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import layers
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from eckart.adapters import LayerShape, LoRAConfig, MoSConfig, trainable_parameters
from eckart.errors import InputError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.up, self.down = nn.Linear(24, 24), nn.Linear(24, 40), nn.Linear(40, 24)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.q(x))))


BLOCKS = 4


def stack(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(BLOCKS))).to(dtype)


def mos(base: nn.Module | None = None, **options: Any) -> PeftModel:
    config = {"target_modules": ["q", "up", "down"], "equivalent_rank": 2, **options}
    return get_peft_model(stack() if base is None else base, MoSConfig(**config))


def adapters(model: PeftModel) -> list[Any]:
    return [layer.eckart_adapters["default"] for layer in layers(model)]


def of(model: PeftModel, kind: str) -> list[Any]:
    return [a for a in adapters(model) if a.layer.shape.name.endswith(kind)]


def fill(model: PeftModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()


def test_count_is_that_of_lora_at_the_equivalent_rank() -> None:
    for options in ({}, {"r": 3}, {"shards_per_vector": 1}, {"private_rank": 0}, {"subset_selection": False}):
        model = mos(**options)
        shapes = [adapter.layer.shape for adapter in adapters(model)]
        wanted = LoRAConfig(r=2).trainable_parameters(shapes)
        assert trainable_parameters(model) == MoSConfig(equivalent_rank=2, **options).trainable_parameters(
            shapes
        )
        assert trainable_parameters(model) == wanted


def test_count_of_the_published_runs() -> None:
    """LLaMA-2-7B, all seven linear layers: 4,997,120 at e = 2 and 19,988,480 at e = 8."""
    widths = {"q": (4096, 4096), "k": (4096, 4096), "v": (4096, 4096), "o": (4096, 4096)}
    widths |= {"gate": (11008, 4096), "up": (11008, 4096), "down": (4096, 11008)}
    shapes = [LayerShape(f"layers.{b}.{n}", "linear", w) for b in range(32) for n, w in widths.items()]
    assert MoSConfig(equivalent_rank=2).trainable_parameters(shapes) == 4_997_120
    assert MoSConfig(equivalent_rank=8).trainable_parameters(shapes) == 19_988_480


def test_each_type_has_one_pool() -> None:
    model = mos()
    pools = [name for name, _ in model.named_parameters() if "pool_A" in name]
    assert [name.split(".")[3] for name in pools] == ["q", "up", "down"]
    assert all(".0." in name for name in pools)
    for kind in ("q", "up", "down"):
        assert len({id(adapter.shared["pools"]) for adapter in of(model, kind)}) == 1


def test_indices_within_a_block_and_between_blocks() -> None:
    e, p, r, shards = 3, 1, 6, 4
    model = mos(equivalent_rank=e, private_rank=p, r=r, shards_per_vector=shards)
    public = (e - p) * BLOCKS * shards
    own = []
    for adapter in of(model, "up"):
        for index in (adapter.index_A, adapter.index_B):
            assert index.shape == (r, shards)
            assert index.unique().numel() == r * shards
            assert (index[: r - p] < public).all()
        assert torch.equal(adapter.index_A[r - p :], adapter.index_B[r - p :])
        assert not torch.equal(adapter.index_A[: r - p], adapter.index_B[: r - p])
        own.append(set(adapter.index_A[r - p :].flatten().tolist()))
        assert min(own[-1]) >= public
    assert all(not a & b for a, b in itertools.combinations(own, 2))
    assert set().union(*own) == set(range(public, e * BLOCKS * shards))


def test_factors_are_concatenated_shards() -> None:
    model = mos(r=5, shards_per_vector=4, lora_alpha=10.0)
    fill(model)
    for adapter in adapters(model):
        pool_a, pool_b = (adapter.shared["pools"][name] for name in ("pool_A", "pool_B"))
        a = torch.stack([torch.cat([pool_a[i] for i in row]) for row in adapter.index_A])
        b = torch.stack([torch.cat([pool_b[:, i] for i in row]) for row in adapter.index_B], dim=1)
        torch.testing.assert_close(adapter.delta_weight(), 2 * b @ a)


def test_all_private_is_plain_lora() -> None:
    """p = e = r and l = 1: the same outputs and gradients as LoRA with the pools' rows as its factors."""
    model = mos(equivalent_rank=3, private_rank=3, r=3, shards_per_vector=1)
    fill(model)
    lora = get_peft_model(stack(), LoRAConfig(r=3, target_modules=["q", "up", "down"]))
    pairs = list(zip(adapters(model), adapters(lora), strict=True))
    with torch.no_grad():
        for ours, plain in pairs:
            rows = ours.index_A.flatten()
            assert torch.equal(rows, ours.index_B.flatten())
            plain.lora_A.copy_(ours.shared["pools"]["pool_A"][rows])
            plain.lora_B.copy_(ours.shared["pools"]["pool_B"][:, rows])
    x = torch.randn(5, 24, dtype=torch.float64)
    torch.testing.assert_close(model(x), lora(x))
    model(x).square().sum().backward()
    lora(x).square().sum().backward()
    for ours, plain in pairs:
        rows = ours.index_A.flatten()
        torch.testing.assert_close(ours.shared["pools"]["pool_A"].grad[rows], plain.lora_A.grad)
        torch.testing.assert_close(ours.shared["pools"]["pool_B"].grad[:, rows], plain.lora_B.grad)


def test_a_private_shard_learns_from_its_block_alone() -> None:
    model = mos(private_rank=1)
    fill(model)
    first, *others = of(model, "q")
    sum(adapter.delta_weight().square().sum() for adapter in others).backward()
    grad = first.shared["pools"]["pool_A"].grad
    r = first.index_A.shape[0]
    assert not grad[first.index_A[r - 1]].count_nonzero()
    for adapter in others:
        assert grad[adapter.index_A[r - 1]].count_nonzero()


def test_rank_is_above_that_of_the_parameters() -> None:
    model = mos(equivalent_rank=2, r=8, private_rank=0)
    fill(model)
    for adapter in adapters(model):
        assert torch.linalg.matrix_rank(adapter.delta_weight(), rtol=1e-10) == 8


def test_strategies_can_be_turned_off() -> None:
    sharing = mos(subset_selection=False, pair_dissociation=False, shards_per_vector=1, private_rank=0)
    for adapter in adapters(sharing):
        assert adapter.index_A.shape == (2 * BLOCKS, 1)
        assert torch.equal(adapter.index_A, adapter.index_B)
        assert torch.equal(adapter.index_A.flatten().sort().values, torch.arange(2 * BLOCKS))


def test_indices_and_pools_follow_from_the_seed(tmp_path: Path) -> None:
    model = mos(stack(torch.float32))
    torch.rand(100)
    again = mos(stack(torch.float32))
    for a, b in zip(adapters(model), adapters(again), strict=True):
        assert torch.equal(a.index_A, b.index_A)
        assert torch.equal(a.shared["pools"]["pool_A"], b.shared["pools"]["pool_A"])
    other = mos(stack(torch.float32), seed=1)
    assert not torch.equal(adapters(other)[0].index_A, adapters(model)[0].index_A)
    fill(model)
    model.save_pretrained(tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert size < 4 * trainable_parameters(model) + 2000
    x = torch.randn(3, 24)
    assert torch.equal(PeftModel.from_pretrained(stack(torch.float32), tmp_path)(x), model(x))


def test_pool_starts_within_the_bound_of_the_whole_row() -> None:
    pool = of(mos(shards_per_vector=8), "down")[0].shared["pools"]["pool_A"]
    assert pool.shape[1] == 5
    assert 0.9 * 40**-0.5 < pool.abs().max() <= 40**-0.5


def test_defaults_adapt_to_the_layers() -> None:
    """e = 1 has no private row; a layer that 4 does not divide takes 3, 2 or 1 shards; r stays within the pool."""
    base = nn.Sequential(nn.Linear(9, 6), nn.Linear(6, 7))
    model = get_peft_model(base, MoSConfig(target_modules=["0", "1"], equivalent_rank=1))
    assert [adapter.index_A.shape for adapter in adapters(model)] == [(1, 3), (1, 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"equivalent_rank": 0}, "equivalent_rank is 0: give a whole number of at least 1"),
        ({"private_rank": 3}, "private_rank is 3, above equivalent_rank = 2"),
        ({"private_rank": 2, "r": 1}, r"r is 1, but layer 0.q \(24, 24\) allows 2 to 2"),
        ({"shards_per_vector": 5}, r"shards_per_vector is 5: layer 0.q \(24, 24\) needs a divisor of 24"),
        ({"shards_per_vector": 0}, "shards_per_vector is 0"),
        ({"r": 3, "subset_selection": False}, "r is 3 with subset_selection=False"),
    ],
)
def test_refuses_what_no_layer_has_and_leaves_the_model(options: dict[str, Any], message: str) -> None:
    base = stack()
    with pytest.raises(InputError, match=message):
        mos(base, **options)
    assert not layers(base)


def test_knob_values_leave_room_for_what_is_given() -> None:
    shapes = [adapter.layer.shape for adapter in adapters(mos())]
    assert list(MoSConfig().knob_values(shapes)) == list(range(1, 25))
    assert next(iter(MoSConfig(private_rank=3).knob_values(shapes))) == 3


def test_ranks_are_caps() -> None:
    shapes = [adapter.layer.shape for adapter in adapters(mos())]
    assert MoSConfig(equivalent_rank=100).sizes(shapes[0], 4)[0] == min(shapes[0].max_rank, 100)
    # p + (e − p) L with p = 1, e = 2, L = 4
    assert MoSConfig(r=10).sizes(shapes[0], 4)[2] == 5


def test_blocks_of_one_type_draw_different_indices() -> None:
    for kind in ("q", "up", "down"):
        for name in ("index_A", "index_B"):
            drawn = [getattr(a, name).flatten().tolist() for a in of(mos(private_rank=0), kind)]
            assert len({tuple(d) for d in drawn}) == BLOCKS
    first, again = (mos(seed=s) for s in (3, 3))
    for a, b in zip(adapters(first), adapters(again), strict=True):
        assert torch.equal(a.index_A, b.index_A) and torch.equal(a.index_B, b.index_B)
    assert not torch.equal(adapters(first)[0].index_A, adapters(mos(seed=4))[0].index_A)
    assert not torch.equal(adapters(first)[0].index_A, adapters(first)[0].index_B)
