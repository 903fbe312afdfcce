"""One run: the same batches for everyone, two learning rates, early ends, and what is measured."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toy_task import ToyTask

from eckart.adapters import adapt
from eckart.tasks.instruments import FrozenFloor
from eckart.tasks.scoring import Evaluation, evaluate, score_examples
from eckart.tasks.trainer import DIVERGED, Recipe, data_order, make_trainer, parameter_groups, train_run

RECIPE = Recipe(steps=8, batch_size=8, learning_rate=1e-3, head_learning_rate=1e-2)


@pytest.fixture
def task() -> ToyTask:
    torch.set_num_threads(1)
    return ToyTask()


def lora(task: ToyTask, seed: int = 0) -> nn.Module:
    heads = list(task.head_modules)
    return adapt(
        task.fresh_model(seed), "lora", r=2, target_modules=["query"], modules_to_save=heads, seed=seed
    )


def test_the_order_of_the_data_is_shuffled_passes_by_the_seed() -> None:
    sizes = [5] * 82
    order = data_order(sizes, steps=40, batch_size=5, seed=1)
    assert len(order) == 200
    for one_pass in (order[:80], order[80:160]):
        assert len(set(one_pass)) == 80 and one_pass != sorted(one_pass)
    assert order[:80] != order[80:160]
    assert set(order) == set(range(82)), "what is left out of one pass comes in another"
    assert order == data_order(sizes, 40, 5, seed=1) != data_order(sizes, 40, 5, seed=2)
    assert data_order([1, 2], steps=3, batch_size=5, seed=0).count(0) in (7, 8), "fewer examples than a batch"


@pytest.mark.parametrize("steps", [1, 15, 16, 17, 40])
def test_a_shorter_run_sees_the_first_batches_of_a_longer_one(steps: int) -> None:
    sizes = torch.randint(5, 60, (70,), generator=torch.Generator().manual_seed(0)).tolist()
    assert data_order(sizes, steps, 4, seed=3) == data_order(sizes, 60, 4, seed=3)[: steps * 4]


def test_a_batch_holds_examples_of_like_length_and_long_ones_do_not_come_last() -> None:
    sizes = torch.randint(5, 64, (768,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = torch.tensor(sizes)[data_order(sizes, 48, 16, seed=0)].reshape(48, 16)
    padding = 1 - batches.sum() / (batches.amax(1) * 16).sum()
    assert padding < 0.1
    first, second = batches.float().mean(1).split(24)
    assert abs(first.mean() - second.mean()) < 6
    assert sorted(data_order(sizes, 48, 16, seed=0)) == list(range(768))


def test_every_method_sees_the_same_batches(task: ToyTask) -> None:
    seen: dict[str, list[Any]] = {}
    for name, dropout in (("plain", 0.0), ("dropout", 0.5)):
        model = adapt(task.fresh_model(0), "lora", r=2, target_modules=["query"], dropout=dropout)
        batches = seen.setdefault(name, [])
        model.register_forward_pre_hook(
            lambda _m, _a, batch, kept=batches: kept.append(batch["input_ids"]), with_kwargs=True
        )
        train_run(model, task, RECIPE)
    assert len(seen["plain"]) == RECIPE.steps
    assert all(torch.equal(a, b) for a, b in zip(seen["plain"], seen["dropout"], strict=True))


def test_a_run_repeated_gives_the_same_numbers(task: ToyTask) -> None:
    first, second = (train_run(lora(task), task, RECIPE).losses for _ in range(2))
    assert first == second
    assert train_run(lora(task, 1), task, Recipe(8, 8, 1e-3, 1e-2, seed=1)).losses != first


def test_the_floor_does_not_change_the_run(task: ToyTask) -> None:
    plain = train_run(lora(task), task, RECIPE).losses
    base = task.fresh_model(0)
    floor = FrozenFloor(base)
    model = adapt(base, "lora", r=2, target_modules=["query"], modules_to_save=["classifier"])
    measured = train_run(model, task, RECIPE, floor=floor)
    assert measured.losses == plain
    assert measured.step_time_ratio > 0 and measured.step_seconds > 0 and measured.peak_memory_mb > 0


def test_the_head_has_its_own_learning_rate(task: ToyTask) -> None:
    model = lora(task)
    body, head = parameter_groups(model, task, RECIPE)
    assert (body["lr"], head["lr"]) == (1e-3, 1e-2)
    assert sum(p.numel() for p in head["params"]) == 3 * 32 + 3
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(p.numel() for group in (body, head) for p in group["params"]) == trained
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_run(model, task, RECIPE)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_schedule_rises_then_falls_to_zero(task: ToyTask) -> None:
    rates: list[float] = []
    trainer = make_trainer(lora(task), task, Recipe(20, 8, 1e-3, 1e-2))
    log = trainer.log
    trainer.log = lambda logs, *rest: (rates.append(logs.get("learning_rate")), log(logs, *rest))  # type: ignore[assignment]
    trainer.train()
    rates = [rate for rate in rates if rate is not None]
    assert rates[0] == 0 and max(rates) == pytest.approx(1e-3) and rates.index(max(rates)) == 2
    assert rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] == pytest.approx(1e-3 / 18)


def test_a_trainer_writes_nothing_unless_told(
    task: ToyTask, tmp_path: Any, capfd: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    make_trainer(lora(task), task, RECIPE).train()
    assert not list(tmp_path.iterdir())
    assert "loss" not in "".join(capfd.readouterr())


def _spoil(model: torch.nn.Module, value: float, steps: Container[int]) -> None:
    """Multiply the loss of some steps, counted from 1."""
    calls = []

    def hook(_module: Any, _inputs: Any, outputs: Any) -> Any:
        calls.append(1)
        if len(calls) in steps:
            outputs.loss = outputs.loss * value
        return outputs

    model.register_forward_hook(hook)


@pytest.mark.parametrize(("value", "stops"), [(math.nan, 3), (math.inf, 3), (DIVERGED * 10, 5)])
def test_a_lost_run_stops(task: ToyTask, value: float, stops: int) -> None:
    """At once when the loss is no number, when most of the last five are too high otherwise."""
    model = lora(task)
    _spoil(model, value, range(3, 100))
    training = train_run(model, task, RECIPE, rungs=(stops,))
    assert training.status == "diverged" and training.steps == stops and len(training.losses) == stops
    assert not training.validations, "nothing is scored once a run is lost"


def test_one_hard_batch_is_no_divergence(task: ToyTask) -> None:
    model = lora(task)
    _spoil(model, DIVERGED * 10, (3, 6))
    assert train_run(model, task, RECIPE).status == "complete"


def test_a_hopeless_run_stops_at_its_rung(task: ToyTask) -> None:
    asked: list[int] = []

    def keep_going(step: int, evaluation: Evaluation) -> bool:
        asked.append(step)
        return step < 4

    training = train_run(lora(task), task, RECIPE, rungs=(2, 4, 8), keep_going=keep_going)
    assert training.status == "pruned" and training.steps == 4 and asked == [2, 4]
    assert [step for step, _ in training.validations] == [2, 4]


def test_training_never_reads_the_test_split(task: ToyTask) -> None:
    train_run(lora(task), task, RECIPE, rungs=(2, 8))
    assert task.test.read == [] and task.validation.read != []


def test_evaluate_does_not_depend_on_how_examples_are_batched(task: ToyTask) -> None:
    model = lora(task)
    model.train()
    one, other = (evaluate(model, task, task.test, size) for size in (3, 64))
    assert one.score == other.score and one.loss == pytest.approx(other.loss, rel=1e-5)
    assert model.training
    with torch.inference_mode():
        model.eval()
        outputs = [model(**task.collator([row])) for row in task.test.rows]
    right = [
        float(o.logits.argmax(-1) == row["labels"]) for o, row in zip(outputs, task.test.rows, strict=True)
    ]
    assert one.score == np.mean(right) and one.ci_low < one.score < one.ci_high


def test_examples_are_scored_in_the_order_of_the_split(task: ToyTask) -> None:
    model = task.fresh_model(0)
    found = score_examples(model, task, task.test, 7)
    alone = [
        score_examples(model, task, torch.utils.data.Subset(task.test, [i]), 1) for i in range(len(task.test))
    ]
    assert list(found.scores) == [one.scores[0] for one in alone]
    assert found.predictions == [one.predictions[0] for one in alone if one.predictions]
    truth = [row["labels"] for row in task.test.rows]
    assert [float(a == b) for a, b in zip(found.predictions or [], truth, strict=True)] == list(found.scores)
    assert found.loss == pytest.approx(np.mean([one.loss for one in alone]), rel=1e-5)
    assert found.evaluation().score == found.scores.mean()
    assert found.evaluation([str(i % 9) for i in range(64)]).ci_low != found.evaluation().ci_low
