"""What is kept of a run and when it ends: by the scores on the validation split, and the same after a kill."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from tiny_models import save_bert, save_reviews

from eckart.errors import InputError
from eckart.jobs.adapt import finetuning, training
from eckart.jobs.adapt.finetuning import finetune
from eckart.jobs.adapt.training import best
from eckart.tasks.scoring import Evaluation

SETTINGS: dict[str, Any] = {
    "steps": 12,
    "batch_size": 8,
    "save_every": 2,
    "validate_every": 2,
    "options": {"r": 2},
    "lr": 1e-2,
}
SCORES = {2: 0.5, 4: 0.7, 6: 0.7, 8: 0.6, 10: 0.55, 12: 0.65}
"""On the validation split, by step: the best is that of step 4, of two that are equal the first."""


class Stop(Exception):
    """Ends a run from inside."""


class Script:
    """Scores as written, whatever the model; keeps what the model was at each."""

    def __init__(self) -> None:
        self.step, self.stop, self.states = 0, 0, dict[int, dict[str, torch.Tensor]]()

    def on_step(self, step: int, steps: int) -> None:
        self.step = step
        if step == self.stop:
            raise Stop

    def evaluate(self, model: Any, *_: Any) -> Evaluation:
        step = self.step + 1
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        self.states[step] = {name: value.clone() for name, value in state.items()}
        return Evaluation(SCORES[step], SCORES[step], SCORES[step], 1.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("files")
    return str(save_bert(folder / "bert")), str(save_reviews(folder / "reviews.csv"))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    made = Script()
    monkeypatch.setattr(training, "evaluate", made.evaluate)
    return made


def run(files: tuple[str, str], output: Path, script: Script, **given: Any) -> dict[str, Any]:
    return finetune(*files, "bone", output=output, on_step=script.on_step, **SETTINGS, **given)


def holds(output: Path, state: dict[str, torch.Tensor]) -> bool:
    """Whether an adapter directory holds these numbers of adapters and head."""
    saved = load_file(output / "adapter_model.safetensors")
    assert saved.keys() == state.keys()
    return all(torch.equal(saved[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("given", "last", "kept"),
    [
        ({}, 12, 12),
        ({"keep": "best"}, 12, 4),
        ({"patience": 1}, 6, 6),
        ({"patience": 2}, 8, 8),
        ({"patience": 3, "keep": "best"}, 10, 4),
        ({"patience": 5, "keep": "best"}, 12, 4),
    ],
)
def test_best_and_patience(
    files: tuple[str, str], tmp_path: Path, script: Script, given: dict[str, Any], last: int, kept: int
) -> None:
    metrics = run(files, tmp_path / "run", script, **given)
    assert (metrics["last_step"], metrics["kept_step"]) == (last, kept)
    assert [step for step, _ in metrics["losses"]] == list(range(1, last + 1))
    assert metrics["validation"]["score"] == SCORES[kept]
    assert [found["step"] for found in metrics["validations"]] == list(range(2, last + 1, 2))
    for step, state in script.states.items():
        assert holds(tmp_path / "run", state) == (step == kept), step
    card = (tmp_path / "run" / "README.md").read_text()
    assert (f"{last} of 8 examples, ended early of 12" in card) == (last < 12)
    assert (f"the weights are those of step {kept}" in card) == (kept < last)


@pytest.mark.parametrize("stop", [5, 9])
def test_a_killed_run_keeps_the_same(
    files: tuple[str, str], tmp_path: Path, script: Script, stop: int
) -> None:
    given = {"patience": 3, "keep": "best"}
    whole = run(files, tmp_path / "whole", script, **given)
    script.step, script.stop = 0, stop
    with pytest.raises(Stop):
        run(files, tmp_path / "cut", script, **given)
    script.step, script.stop = stop - 1, 0
    resumed = run(files, tmp_path / "cut", script, resume=True, **given)
    assert resumed["resumed_at_step"] == stop - 1
    for name in ("losses", "validation", "test", "last_step", "kept_step"):
        assert resumed[name] == whole[name], name
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(InputError, match="patience is 3 there and 4 here"):
        run(files, tmp_path / "cut", script, resume=True, keep="best", patience=4)


def test_a_run_that_has_ended_early_does_not_go_on(
    files: tuple[str, str], tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(files, tmp_path / "whole", script, patience=2)

    def kill(*args: Any, **kwargs: Any) -> None:
        raise Stop

    script.step = 0
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "model_card", kill)
        with pytest.raises(Stop):
            run(files, tmp_path / "cut", script, patience=2)
    script.step = 6
    resumed = run(files, tmp_path / "cut", script, resume=True, patience=2)
    assert (resumed["resumed_at_step"], resumed["last_step"]) == (6, 8)
    assert resumed["losses"] == whole["losses"] and resumed["test"] == whole["test"]


def test_the_best_of_real_scores_is_the_one_that_is_written(files: tuple[str, str], tmp_path: Path) -> None:
    metrics = finetune(*files, "bone", output=tmp_path / "run", keep="best", **SETTINGS)
    scores = [found["score"] for found in metrics["validations"]]
    assert metrics["kept_step"] == 2 * (1 + scores.index(max(scores)))


@pytest.mark.parametrize(
    ("scores", "greater", "place"),
    [
        ([1.0, 3.0, 2.0, 3.0], True, 1),
        ([1.0, 3.0, 2.0, 1.0], False, 0),
        ([math.nan, 2.0, math.inf], True, 1),
        ([math.nan, 2.0, -math.inf], False, 1),
        ([math.nan], True, None),
        ([], True, None),
    ],
)
def test_best(scores: list[float], greater: bool, place: int | None) -> None:
    assert best([{"score": score} for score in scores], greater) == place


def test_scores_that_are_never_finite_end_a_run_too(
    files: tuple[str, str], tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_training.SCORES", dict.fromkeys(range(2, 13, 2), math.nan))
    metrics = run(files, tmp_path / "run", script, patience=2, keep="best")
    assert (metrics["last_step"], metrics["kept_step"]) == (4, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep": "first"}, "--keep first: choose last or best"),
        ({"patience": 0}, "patience is 0: give at least 1"),
        ({"patience": 1.5}, "patience is 1.5: give a whole number"),
        ({"report_to": "tensorbord"}, "--report-to tensorbord: choose of tensorboard, wandb, mlflow"),
        ({"report_to": ""}, "--report-to : choose of"),
        ({"push_to_hub": "a/b/c"}, "--push-to-hub a/b/c: "),
    ],
)
def test_what_is_refused(files: tuple[str, str], tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        finetune(*files, "bone", output=tmp_path / "run", **SETTINGS, **given)
    assert not (tmp_path / "run").exists()
