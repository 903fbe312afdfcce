"""PEFT's own methods as contenders: their counts, their budgets, their learning rates, and that they train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel
from toy_task import ToyTask

from eckart.adapters import lr_scales
from eckart.cli.checks import check_methods
from eckart.errors import InputError
from eckart.jobs.compare.contenders import contenders
from eckart.jobs.compare.names import method_names
from eckart.jobs.compare.peft_methods import METHODS, peft_name, peft_names
from eckart.tasks.trainer import Recipe, in_head, train_run


def contender(name: str, budget: str | int = "5%") -> Any:
    return contenders(ToyTask(), name, budget, None, 3, None)[-1]


def trained(model: torch.nn.Module, task: Any) -> int:
    return sum(
        p.numel()
        for n, p in model.named_parameters()
        if p.requires_grad and not in_head(n, task.head_modules)
    )


@pytest.mark.parametrize("name", peft_names())
def test_the_budget_is_met_and_a_step_trains(name: str) -> None:
    task: Any = ToyTask()
    found = contender(name)
    model = found.prepare(task.fresh_model(0), task, 0)
    assert isinstance(model, PeftModel)
    base = sum(p.numel() for p in task.fresh_model(0).parameters())
    count, limit = trained(model, task), int(0.05 * base)
    assert count <= limit
    if name == "peft:oft":  # its blocks must divide the widths
        assert found.options == {
            "oft_block_size": max(b for b in (2, 4, 8, 16) if 2 * 2 * 16 * (b - 1) / 2 <= limit)
        }
    else:
        assert count > 0.85 * limit
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    recipe = Recipe(steps=4, batch_size=8, learning_rate=found.trials[0], head_learning_rate=1e-3)
    training = train_run(
        model, task, recipe, callbacks=[rule.callback() for rule in found.rules(task, recipe)]
    )
    assert training.status == "complete"
    moved = {n for n, p in model.named_parameters() if n in before and not torch.equal(p, before[n])}
    assert any("classifier" not in n for n in moved)


@pytest.mark.parametrize("name", peft_names())
def test_a_seed_draws_the_same_start(name: str) -> None:
    task: Any = ToyTask()
    found = contender(name)
    one, same, other = (
        {
            n: p
            for n, p in found.prepare(task.fresh_model(0), task, seed).named_parameters()
            if "classifier" not in n
        }
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[n], same[n]) for n in one)
    drawn = any(not torch.equal(one[n], other[n]) for n in one if one[n].requires_grad)
    assert drawn == (name in ("peft:dora", "peft:loraplus", "peft:adalora"))


def test_lora_plus_trains_b_sixteen_times_as_fast() -> None:
    task: Any = ToyTask()
    model = contender("peft:loraplus").prepare(task.fresh_model(0), task, 0)
    scales = lr_scales(model)
    assert set(scales.values()) == {16.0}
    assert set(scales) == {n for n, p in model.named_parameters() if ".lora_B." in n and p.requires_grad}


def test_adalora_shrinks_to_its_target() -> None:
    task: Any = ToyTask()
    found = contender("peft:adalora", "10%")
    model = found.prepare(task.fresh_model(0), task, 0)
    recipe = Recipe(steps=20, batch_size=8, learning_rate=1e-3, head_learning_rate=1e-3)
    train_run(model, task, recipe, callbacks=[rule.callback() for rule in found.rules(task, recipe)])
    config = model.peft_config["default"]
    assert (config.total_step, config.tinit, config.tfinal) == (20, 2, 4)
    kept = sum(sum(map(bool, ranks)) for ranks in config.rank_pattern.values())
    layers = len(config.rank_pattern)
    assert kept == layers * config.target_r < layers * config.init_r


def test_ranks_are_those_that_our_lora_has() -> None:
    ours, theirs = contenders(ToyTask(), "peft:pissa", "5%", None, 3, None)[-2:]
    assert theirs.options == ours.options
    assert theirs.config.rank_pattern == (ours.config.rank_pattern or {})


def test_names() -> None:
    assert method_names("PEFT:DoRA, peft:lora+")[1] == {"peft:dora", "peft:loraplus"}
    assert peft_name("lora") is None
    assert len(METHODS) == 6
    check_methods("lora,peft:vera")
    for refuse in (method_names, check_methods):
        with pytest.raises(
            InputError, match="unknown method 'peft:dorra': of PEFT's own there are peft:dora"
        ):
            refuse("peft:dorra")
        with pytest.raises(InputError, match="cannot be combined: rules act on adapters of eckart's"):
            refuse("peft:dora+allora")


@pytest.mark.parametrize(
    ("name", "least"), [("peft:dora", "beside A and B"), ("peft:vera", "smallest possible")]
)
def test_a_budget_that_is_too_small(name: str, least: str) -> None:
    with pytest.raises(InputError, match=f"cannot be met by {name}.*{least}"):
        contender(name, 20)
