"""The intrinsic dimension of a task: where the curve crosses the mark, what is tuned, kept and refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from toy_task import ToyTask, install

from eckart.errors import InputError
from eckart.jobs.compare.runs import Runner
from eckart.jobs.measure import dimension_runs
from eckart.jobs.measure.dimension import crossing, measure_dimension, sentence

SMALL: dict[str, Any] = {"dimensions": [40, 8], "steps": 4, "seeds": 2, "batch_size": 8}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> ToyTask:
    import eckart.tasks.task as tasks

    torch.set_num_threads(1)
    monkeypatch.setattr(tasks, "load_task", tasks.load_task)  # put back what install replaces
    return install()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any], Any]]:
    """What each run was, in place of doing it: its score follows from stage, d and learning rate."""
    asked: list[tuple[str, dict[str, Any], Any]] = []

    def do(self: Runner, run: Any, contender: Any) -> Any:
        d = getattr(contender.config, "d", None)
        asked.append((run.id, dict(run.parameters), contender))
        score = {"head-only": 0.5, "full": 0.9}.get(contender.name, 0.5 + 0.1 * math.log10(d or 1))
        validation = 0.5 - abs(math.log(run.parameters["lr"] / 0.03))
        row = self.blank_row(run, contender) | {"trainable_parameters": d or 0, "head_parameters": 7}
        if run.parameters["stage"] == "tune":
            row |= {"validation_score": validation}
        else:
            score += 0.01 * run.parameters["seed"]
            row |= {"score": score, "ci_low": score - 0.02, "ci_high": score + 0.02}
        return type("Result", (), {"row": row})

    monkeypatch.setattr(Runner, "do", do)
    return asked


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.2, 0.5, 0.9], 10 ** (1 + 2 * 0.25)),
        ([0.2, 0.6, 0.9], 10.0),
        ([0.7, 0.2, 0.9], 1.0),
        ([math.nan, 0.2, 0.6], 1000.0),
        ([math.nan, 0.7, 0.6], 10.0),
        ([0.1, math.nan, 0.8], 1000.0),
        ([0.1, 0.2, 0.3], None),
        ([math.nan, math.nan, math.nan], None),
    ],
)
def test_the_crossing_is_linear_in_log_d(scores: list[float], expected: float | None) -> None:
    found = crossing([1, 10, 1000], scores, 0.6)
    assert found == (None if expected is None else pytest.approx(expected))


def test_runs_are_tuned_beyond_an_edge_with_the_rate_of_the_head_alone(
    tmp_path: Path, asked: list[tuple[str, dict[str, Any], Any]]
) -> None:
    found = measure_dimension(output=tmp_path / "out", **SMALL)
    tuned = {}
    for name, numbers, _ in asked:
        if numbers["stage"] == "tune":
            tuned.setdefault(name.split("/")[1], []).append(numbers["lr"])
            assert (numbers["steps"], numbers["seed"]) == (2, 0)
        else:
            assert numbers["steps"] == 4
    assert tuned["head-only"] == [0.0017, 0.005, 0.015, 0.045, 0.14]
    assert tuned["d=8"] == tuned["d=40"] == [0.003, 0.01, 0.03, 0.09]
    assert tuned["full"] == [3.3e-05, 0.0001, 0.0003, 0.0009, 0.0027, 0.0081], "three beyond, and no more"
    heads = {numbers["head_lr"] for name, numbers, _ in asked if "head-only" not in name}
    assert heads == {0.045}
    configs = {contender.config.d: contender.config for _, _, contender in asked if contender.config}
    assert configs[8].train_bias and set(configs[8].modules_to_save) == {"classifier"}
    assert [row["d"] for row in found["curve"]] == [0, None, 8, 40]
    assert found["curve"][2]["parameters"] == 15 and found["curve"][2]["lr"] == 0.03


def test_the_mark_is_of_the_score_or_of_the_gain(
    tmp_path: Path, asked: list[tuple[str, dict[str, Any], Any]]
) -> None:
    given = SMALL | {"dimensions": [10, 100, 1000]}
    found = measure_dimension(output=tmp_path / "a", share=0.8, **given)
    assert found["mark"] == pytest.approx(0.8 * 0.905)
    assert found["dimension"] == pytest.approx(10 ** ((0.8 * 0.905 - 0.505) / 0.1), rel=1e-6)
    by_seed = [10 ** ((0.8 * (0.9 + 0.01 * k) - 0.5 - 0.01 * k) / 0.1) for k in range(2)]
    assert found["by_seed"] == pytest.approx(by_seed)
    count = len(asked)
    gain = measure_dimension(output=tmp_path / "a", share=0.5, of="gain", **given)
    trivial = gain["trivial"]
    assert gain["mark"] == pytest.approx(trivial + 0.5 * (0.905 - trivial)) and len(asked) == count
    more = measure_dimension(output=tmp_path / "a", share=1.0, **given | {"seeds": 3})
    assert len(asked) == count + 5 and more["dimension"] is None
    assert (
        more["sentence"]
        == "None of the dimensions tried reaches 100% of full training's score: give larger ones."
    )


def test_sentences() -> None:
    told = {
        "share": 0.9,
        "of": "gain",
        "head_reaches": False,
        "dimension": 120.0,
        "by_seed": [90.0, 200.0, None],
    }
    assert sentence(told) == (
        "About 120 dimensions reach 90% of full training's gain (90 to 200 by seed); "
        "1 of 3 seeds alone do not reach it."
    )
    assert sentence(told | {"head_reaches": True}).startswith(
        "The head alone reaches 90% of full training's gain"
    )


def test_a_measurement_goes_on_where_it_was(
    tmp_path: Path, asked: list[tuple[str, dict[str, Any], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, given = tmp_path / "out", SMALL | {"learning_rates": [1e-2]}
    do = Runner.do

    def stopped(self: Runner, *rest: Any) -> Any:
        if len(asked) == 5:
            raise KeyboardInterrupt
        return do(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "do", stopped)
        with pytest.raises(KeyboardInterrupt):
            measure_dimension(output=output, **given)
    assert len(json.loads((output / "runs.json").read_text("utf-8"))) == 5
    seen: list[tuple[int, int]] = []
    found = measure_dimension(output=output, on_run=lambda *at: seen.append(at), **given)
    assert seen[-1][0] == seen[-1][1] and [at for at, _ in seen] == list(range(1, len(seen) + 1))
    assert len(asked) == len({name for name, _, _ in asked}) == len(seen), "each run was done once"
    whole = measure_dimension(output=tmp_path / "whole", **given)
    assert json.dumps(found) == json.dumps(whole)
    with pytest.raises(InputError, match="holds another measurement: steps is 4 there and 5 here"):
        measure_dimension(output=output, **given | {"steps": 5})
    (output / "mine.txt").write_text("kept")
    measure_dimension(output=output, overwrite=True, **given | {"steps": 1, "seeds": 1})
    kept = json.loads((output / "dimension.json").read_text("utf-8"))
    assert (output / "mine.txt").exists() and kept["identity"]["steps"] == 1


def test_a_measurement_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dimension_runs, "EXTENSIONS", 0)
    given = SMALL | {"learning_rates": [1e-2], "seeds": 1, "steps": 2}
    found = measure_dimension(output=tmp_path / "out", **given)
    kept = json.loads((tmp_path / "out" / "dimension.json").read_text("utf-8"))
    assert kept["sentence"] == found["sentence"] and kept["curve"][2]["score"] == found["curve"][2]["score"]
    table = pd.read_csv(tmp_path / "out" / "dimension.csv")
    assert list(table["d"].fillna(-1)) == [0, -1, 8, 40] and table["score"].between(0, 1).all()
    assert (table["parameters"] - table["parameters"][0])[2:].tolist() == [8, 40]
    assert "<svg role" in (tmp_path / "out" / "dimension.svg").read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dimensions": []}, "dimensions is"),
        ({"dimensions": [0, 3]}, "each at least 1"),
        ({"dimensions": [10**9]}, "dimensions names 1,000,000,000"),
        ({"share": 0}, "share is 0"),
        ({"share": 1.2}, "share is 1.2"),
        ({"share": math.nan}, "share is nan"),
        ({"of": "loss"}, "of is 'loss'"),
        ({"projection": "other"}, "projection is 'other'"),
        ({"structure": "other"}, "structure is 'other'"),
        ({"structure": "said", "dimensions": [2]}, "d is 2"),
        ({"learning_rates": [-1.0]}, "learning_rates is"),
        ({"learning_rates": [math.nan]}, "learning_rates is"),
        ({"seeds": 0}, "seeds is 0"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as error:
        measure_dimension(output=tmp_path / "out", **SMALL | options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_loss_has_only_a_gain(tmp_path: Path) -> None:
    install(metric="bits_per_token", greater_is_better=False)
    with pytest.raises(InputError, match="give of='gain'"):
        measure_dimension(output=tmp_path / "out", **SMALL)
