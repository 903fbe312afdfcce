"""A task of the user's own: from a file, trained and scored as its functions say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from task_checks import refuse

from eckart.jobs.adapt.finetuning import finetune
from eckart.jobs.compare.comparison import compare
from eckart.tasks.own import load_own
from eckart.tasks.scoring import score_examples

FILE = """
import torch
from eckart.tasks.own import OwnTask

def rows(size, shift):
    draw = torch.Generator().manual_seed(shift)
    x = torch.randn(size, 3, generator=draw)
    return [{"x": a, "y": a.sum()[None]} for a in x]

def loss(model, batch):
    return (model(batch["x"]) - batch["y"]).square().mean()

def score(model, batch):
    return (model(batch["x"]) - batch["y"]).abs().squeeze(1)

def task():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    return OwnTask(model, rows(40, 1), rows(8, 2), rows(12, 3), loss, score, metric="error", head_modules=["2"])

def other():
    return 3

def wrong():
    raise RuntimeError("no disk")
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    torch.set_num_threads(1)
    (tmp_path / "mine.py").write_text(FILE)
    return f"{tmp_path / 'mine.py'}:task"


def test_loss_and_score_are_the_users(source: str) -> None:
    task = load_own(source, limits={"train": 10})
    assert (task.kind, task.metric, task.greater_is_better) == ("own", "error", False)
    assert (len(task.train), len(task.test), task.head_modules) == (10, 12, ["net.2"])
    assert task.default_targets == ["net.0"]
    model = task.fresh_model(0)
    batch = task.collator([task.test[i] for i in range(12)])
    with torch.no_grad():
        errors = (model.net(batch["x"]) - batch["y"])[:, 0]
    found = score_examples(model, task, task.test, 5)
    assert found.scores == pytest.approx(errors.abs().numpy(), rel=1e-6)
    assert model.train()(**batch).loss.item() == pytest.approx(errors.square().mean().item())
    assert task.trivial()[0] == "model as given" and len(task.trivial()[1]) == 12
    assert task.example() == "x [3], y [1]"
    assert (
        task.fingerprint == load_own(source, limits={"train": 10}).fingerprint != load_own(source).fingerprint
    )
    json.dumps(task.describe())


def test_it_is_adapted_and_compared(tmp_path: Path, source: str) -> None:
    found = finetune(output=tmp_path / "out", options={"r": 1}, steps=3, batch_size=8, task=source)
    assert found["kind"] == "own" and found["trainable_parameters"] == 11
    task = load_own(source)
    model = PeftModel.from_pretrained(task.fresh_model(0), tmp_path / "out").eval()
    assert score_examples(model, task, task.test, 16).scores.mean() == pytest.approx(found["test"]["score"])
    small: dict[str, Any] = {"methods": "lora", "budget": "90%", "steps": 3, "seeds": 1, "batch_size": 8}
    results = compare(output=tmp_path / "race", task=source, progress=False, learning_rates=[1e-3], **small)
    final = results[results["stage"] == "final"].set_index("method")
    assert (final["status"] == "complete").all() and set(final.index) == {
        "head-only",
        "full",
        "lora",
        "trivial",
    }
    assert (final["metric"] == "error").all() and final.loc["trivial", "label"] == "model as given"


def test_files_that_give_no_task_are_refused(tmp_path: Path, source: str) -> None:
    file = source.removesuffix(":task")
    for words, name in (
        ("give a Python file and a function", file),
        ("give a Python file and a function", str(tmp_path / "none.py:task")),
        ("none", f"{file}:none"),
        ("gives a int", f"{file}:other"),
        ("RuntimeError: no disk", f"{file}:wrong"),
    ):
        refuse(None, None, "--task", words, task=name)
    refuse("model", None, "--model beside --task", task=source)
    refuse(None, None, "--metric beside --task", task=source, metric="mcc")
