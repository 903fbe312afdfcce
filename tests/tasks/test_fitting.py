"""A step's batch in as few parts as the memory holds: what is predicted, what is tried, and that nothing is changed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import save_bert

from eckart.adapters import adapt
from eckart.errors import InputError
from eckart.tasks import fitting
from eckart.tasks.fitting import parts_of
from eckart.tasks.options import sized
from eckart.tasks.task import Task, load_task
from eckart.tasks.trainer import Recipe, train_run

RECIPE = Recipe(3, 16, 1e-2, 1e-2)


@pytest.fixture(scope="module")
def task(root: Path, reviews: Path) -> Task:
    sure = save_bert(root / "fitting", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return load_task(sure, reviews, max_length=16, gradient_accumulation="auto")


@pytest.fixture
def model(task: Task) -> Any:
    return adapt(
        task.fresh_model(0), "lora", r=4, target_modules="all-linear", modules_to_save=task.head_modules
    )


def needed(model: Any, task: Task, size: int) -> int:
    """Bytes of a step, measured."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return fitting._peak(model, fitting._longest(task, size)) + fitting.MOMENTS * trained


def free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(fitting, "free_memory", lambda: size)


@pytest.mark.parametrize(
    ("fits", "batch", "parts"), [(16, 16, 1), (8, 16, 2), (1, 16, 16), (6, 12, 2), (3, 9, 3)]
)
def test_the_largest_part_that_fits(
    task: Task, model: Any, monkeypatch: pytest.MonkeyPatch, fits: int, batch: int, parts: int
) -> None:
    room = needed(model, task, fits) / (1 - fitting.SPARE)
    free(monkeypatch, 1.06 * room)  # the prediction is a line through one example and two
    assert parts_of(model, task, batch) == parts
    if parts < batch:
        free(monkeypatch, 0.96 * room)
        assert parts_of(model, task, batch) > parts


def test_where_nothing_fits_there_is_one_example_in_a_part(
    task: Task, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 0)
    assert parts_of(model, task, 16) == 16


def test_the_model_is_as_it_was(task: Task, model: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    torch.manual_seed(3)
    assert parts_of(model, task, 16) == 1
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_on_a_gpu_what_runs_out_of_memory_is_halved(
    task: Task, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def step(model: Any, batch: Any) -> None:
        tried.append(len(batch["labels"]))
        if len(batch["labels"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fitting, "device", lambda: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(fitting, "_step", step)
    free(monkeypatch, 1e12)
    assert parts_of(model, task, 16) == 4
    assert tried == [1, 2, 16, 8, 4]


def test_the_losses_do_not_depend_on_the_parts(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    curves, calls = [], [0, 0]
    for place, size in enumerate((1e12, 0)):
        free(monkeypatch, size)
        model = adapt(
            task.fresh_model(0), "lora", r=4, target_modules="all-linear", modules_to_save=task.head_modules
        )

        def count(*_: Any, place: int = place) -> None:
            calls[place] += 1

        model.register_forward_pre_hook(count)
        curves.append([loss for _, loss in train_run(model, task, RECIPE).losses])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert calls == [2 + 3, 2 + 3 * 16], "two to foresee, and those of three steps"


def test_sizes() -> None:
    assert sized(None, 16, {}) == (16, {}) and sized(8, 16, {"dtype": "bf16"}) == (8, {"dtype": "bf16"})
    auto = {"gradient_accumulation": "auto"}
    assert sized("auto", 16, {}) == (16, auto) and sized("auto", 4, auto) == (4, auto)  # type: ignore[arg-type]
    for size, options, message in (
        ("16", {}, "batch_size is '16': give a whole number"),
        (0, {}, "batch_size is 0"),
        ("auto", {"gradient_accumulation": 4}, "--batch-size auto beside --gradient-accumulation 4"),
    ):
        with pytest.raises(InputError, match=message):
            sized(size, 16, options)  # type: ignore[arg-type]
