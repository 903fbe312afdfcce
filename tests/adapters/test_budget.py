"""Budgets: the largest knob value that fits, exactly, or the smallest possible count."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from adapter_cases import MLP, adapted, assert_untouched, config, every_method, seeded, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import eckart
from eckart.adapters import (
    get_config,
    parse_budget,
    saved_bytes,
    solve_budget,
    target_shapes,
    trainable_parameters,
)
from eckart.errors import InputError

PARAMETERS = sum(p.numel() for p in MLP().parameters())


@pytest.mark.parametrize(
    ("text", "limit", "unit"),
    [
        ("0.5%", 5_000, "parameters"),
        ("100 %", 1_000_000, "parameters"),
        ("200k", 200_000, "parameters"),
        ("1.5M", 1_500_000, "parameters"),
        ("2G", 2_000_000_000, "parameters"),
        ("12345", 12_345, "parameters"),
        (777, 777, "parameters"),
        ("1e3", 1_000, "parameters"),
        ("64B", 64, "bytes"),
        ("1MB", 1_000_000, "bytes"),
        ("1 mb", 1_000_000, "bytes"),
        ("2kB", 2_000, "bytes"),
        ("1MiB", 2**20, "bytes"),
        ("1.5KiB", 1_536, "bytes"),
        ("1GiB", 2**30, "bytes"),
    ],
)
def test_units(text: str | int, limit: int, unit: str) -> None:
    budget = parse_budget(text, 1_000_000)
    assert (budget.limit, budget.unit) == (limit, unit)


@pytest.mark.parametrize(
    "text", ["", "lots", "5 apples", "-5", "-1%", "1..5k", "k", "%", "1 MB MB", "nan", "1_000"]
)
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"budget {text!r} is not understood: write 0.5%")):
        parse_budget(text, 1_000)


@pytest.mark.parametrize("text", [0, "0", "0%", "0.0001%", "0MB", "0.5B"])
def test_budgets_of_nothing(text: str | int) -> None:
    with pytest.raises(InputError, match=re.escape(f"budget '{text}' comes to 0")):
        parse_budget(text, 1_000)


class Blocks(nn.Module):
    """Linear layers of the given sizes (out, in), named `up`."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(width, out)}) for out, width in sizes)


@every_method
@settings(max_examples=12)
@given(
    sizes=st.lists(st.tuples(st.integers(2, 20), st.integers(2, 20)), min_size=1, max_size=3),
    share=st.floats(0, 1.1),
    unit=st.sampled_from(["parameters", "bytes"]),
)
def test_the_largest_knob_that_fits(slug: str, sizes: list[tuple[int, int]], share: float, unit: str) -> None:
    """Against a search of all values of the knob, each counted on a model that was built with it."""
    base = seeded(lambda: Blocks(sizes))
    chosen = config(slug)
    count = trainable_parameters if unit == "parameters" else saved_bytes
    values = list(chosen.knob_values(target_shapes(base, chosen)))
    values = values if len(values) <= 24 else [*values[:12], *values[-12:]]
    costs = [count(adapted(slug, seeded(lambda: Blocks(sizes)), **{chosen.knob: value})) for value in values]
    if not values:
        with pytest.raises(InputError, match="cannot be met"):
            solve_budget(base, chosen, 10**6)
        return
    limit = max(1, int(min(costs) + share * (max(costs) - min(costs))) - (share < 0.1))
    budget = limit if unit == "parameters" else f"{limit}B"
    if limit < min(costs):
        with pytest.raises(InputError, match=rf"smallest possible is {min(costs):,} {unit}"):
            solve_budget(base, chosen, budget)
        return
    solved = solve_budget(base, chosen, budget)
    options = {chosen.knob: getattr(solved, chosen.knob), "rank_pattern": solved.rank_pattern}
    reached = count(adapted(slug, base, **options))
    assert max(cost for cost in costs if cost <= limit) <= reached <= limit


@every_method
def test_adapt_solves_the_budget_on_the_layers_it_adapts(slug: str, tmp_path: Path) -> None:
    least = smallest(slug)
    for limit in (least, 3 * least, PARAMETERS):
        model = eckart.adapt(seeded(MLP), slug, budget=limit, target_modules=["up", "down"])
        assert least <= trainable_parameters(model) <= limit
        solved = model.peft_config["default"]
        options = {solved.knob: getattr(solved, solved.knob), "rank_pattern": solved.rank_pattern}
        fixed = eckart.adapt(seeded(MLP), slug, target_modules=["up", "down"], **options)
        assert trainable_parameters(fixed) == trainable_parameters(model)
    model = eckart.adapt(seeded(MLP), slug, budget="3KiB", target_modules=["up", "down"])
    model.save_pretrained(tmp_path)
    data = (tmp_path / "adapter_model.safetensors").read_bytes()
    assert saved_bytes(model) == len(data) - 8 - int.from_bytes(data[:8], "little") <= 3072


def smallest(slug: str) -> int:
    """The least count any value of the knob gives on the MLP, from the configs' own formula."""
    chosen = config(slug)
    shapes = target_shapes(seeded(MLP), chosen)
    return min(
        config(slug, **{chosen.knob: value}).trainable_parameters(shapes)
        for value in chosen.knob_values(shapes)
    )


@every_method
def test_percentages_are_of_the_base_model(slug: str) -> None:
    least = smallest(slug)
    percent = 100 * (least + 0.5) / PARAMETERS
    model = eckart.adapt(seeded(MLP), slug, budget=f"{percent:.6f}%", target_modules=["up", "down"])
    assert trainable_parameters(model) == least
    plain, again = (
        solve_budget(base, config(slug), "60%") for base in (seeded(MLP), adapted(slug, seeded(MLP)))
    )
    assert getattr(again, again.knob) == getattr(plain, plain.knob)
    assert again.rank_pattern == plain.rank_pattern


@every_method
def test_what_cannot_be_met_tells_the_least(slug: str) -> None:
    base = seeded(MLP)
    before, least = snapshot(base), smallest(slug)
    if least > 1:
        with pytest.raises(
            InputError, match=rf"cannot be met by {slug} on 2 layers: the smallest possible is {least:,} "
        ):
            eckart.adapt(base, slug, budget=least - 1, target_modules=["up", "down"])
    with pytest.raises(InputError, match=r"cannot be met .* bytes"):
        eckart.adapt(base, slug, budget="1B", target_modules=["up", "down"])
    assert_untouched(base, before)


@every_method
def test_a_budget_and_its_knob_exclude_each_other(slug: str) -> None:
    base, knob = seeded(MLP), get_config(slug).knob
    before = snapshot(base)
    with pytest.raises(InputError, match=f"budget and {knob} are both given"):
        eckart.adapt(base, slug, budget="1k", target_modules=["up"], **{knob: 2})
    assert_untouched(base, before)


@every_method
def test_solving_changes_neither_model_nor_config(slug: str) -> None:
    base, chosen = seeded(MLP), config(slug)
    before, written = snapshot(base), chosen.to_dict()
    solved = solve_budget(base, chosen, PARAMETERS)
    assert_untouched(base, before)
    assert chosen.to_dict() == written
    assert solved is not chosen
    assert {k for k, v in solved.to_dict().items() if v != written[k]} <= {chosen.knob, "rank_pattern"}


def test_quantised_weights_count_as_what_they_hold() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    base = seeded(MLP)
    torchao.quantize_(base, torchao.Int8WeightOnlyConfig())
    assert parse_budget("100%", PARAMETERS).limit == PARAMETERS
    with torch.no_grad():
        lora = eckart.adapt(base, "lora", budget="50%", target_modules=["up", "down"])
    plain = eckart.adapt(seeded(MLP), "lora", budget="50%", target_modules=["up", "down"])
    assert lora.peft_config["default"].r == plain.peft_config["default"].r
