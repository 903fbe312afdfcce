"""What a race keeps of each example, and that it ends in time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from toy_task import ToyTask, install

from eckart.jobs.compare import comparison, race
from eckart.jobs.compare.comparison import compare
from eckart.jobs.compare.runs import Runner

CALL = {"methods": "lora", "budget": "2k", "steps": 4, "seeds": 2, "batch_size": 8, "progress": False}
CALL |= {"learning_rates": [3e-4, 1e-3, 3e-3]}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ToyTask:
    import eckart.tasks.task as tasks

    torch.set_num_threads(1)
    monkeypatch.setattr(tasks, "load_task", tasks.load_task)  # put back what install replaces
    return install()


@pytest.fixture
def output(tmp_path: Path, toy: ToyTask) -> Path:
    return tmp_path / "results"


def test_predictions_groups_and_limits(output: Path, toy: ToyTask) -> None:
    toy.groups = [f"file {i % 5}" for i in range(64)]
    call = {"output": output, "quick": True, "learning_rates": None, "seeds": 1}
    compare(**CALL | call | {"max_bytes": "1kB", "cost": "step-time"})
    table = pd.read_parquet(output / "examples.parquet")
    mine = table[table["run_id"] == "final/lora/seed=0"].sort_values("example")
    assert list(mine["group"]) == toy.groups
    assert list(mine["label"]) == [toy.labels[row["labels"]] for row in toy.test.rows]
    assert ((mine["prediction"] == mine["label"]) == (mine["score"] == 1)).all()
    taken = (mine[mine["label"] == "b"]["prediction"] == "b").mean()
    assert f"<b>{100 * taken:.1f}</b>" in (output / "report.html").read_text()
    about = json.loads((output / "compare.json").read_text())
    assert (about["at_most"], about["cost"], about["level"]) == ({"bytes": 1000.0}, "step-time", 0.05)
    assert about["advice"].startswith("Not enough data yet: ")
    assert "Over your limits: " in about["advice"] and "LoRA (--max-bytes)" in about["advice"]


def test_runs_that_do_not_fit_into_the_time_are_not_begun(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(race, "monotonic", lambda: clock[0])
    monkeypatch.setattr(comparison, "monotonic", lambda: clock[0])
    do = Runner.do

    def slow(self: Runner, run: Any, contender: Any) -> Any:
        result = do(self, run, contender)
        clock[0] += 10
        result.row["seconds"] = 10.0
        return result

    monkeypatch.setattr(Runner, "do", slow)
    results = compare(**CALL | {"output": output, "time": "1m"})
    assert len(results) == 5 + 1 and clock[0] == 50, "one more would end with no time for the page"
    about = json.loads((output / "compare.json").read_text())
    assert about["state"] == "timeout" and about["finished"]
    assert about["advice"].startswith("Not enough data yet: ")
    assert (output / "report.html").exists()


def test_a_run_under_way_when_the_time_is_up_is_left_and_free_again(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    for module in (race, comparison):
        monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    do = Runner.do

    def endless(self: Runner, run: Any, contender: Any) -> Any:
        tell = self.on_step

        def step(words: str) -> None:
            clock[0] += 15 * words.startswith("LoRA")
            tell(words)

        self.on_step = step
        result = do(self, run, contender)
        self.on_step = tell
        return result

    monkeypatch.setattr(Runner, "do", endless)
    results = compare(**CALL | {"output": output, "time": "50s"})
    assert clock[0] == 45, (
        "the first step of LoRA's second run ends after 44 seconds: the page needs the rest"
    )
    assert sum(results["method"] == "lora") == 1
    assert json.loads((output / "compare.json").read_text())["state"] == "timeout"
    assert (output / "report.html").exists()
    monkeypatch.setattr(Runner, "do", do)
    results = compare(**CALL | {"output": output, "time": "1h"})
    assert json.loads((output / "compare.json").read_text())["state"] == "complete"
    assert sum(results["method"] == "lora") == 3 + 2
    assert len(set(results["run_id"])) == len(results)


def test_the_base_is_decomposed_once_for_all_runs_of_a_method(
    toy: ToyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the runs give what they would have given."""
    from eckart.adapters import _kept
    from eckart.jobs.compare.contenders import contenders
    from eckart.jobs.compare.plan import TUNE
    from eckart.jobs.compare.study import Run

    made: list[torch.Tensor] = []
    original = _kept.leading_svd
    monkeypatch.setattr(_kept, "leading_svd", lambda w, r: made.append(w) or original(w, r))
    found = contenders(toy, "svfit", "2k", None, 3, None)
    [svfit] = [contender for contender in found if contender.name == "svfit"]
    runs = [
        Run("run", {"stage": TUNE, "method": "svfit", "lr": lr, "head_lr": 1e-3, "seed": 0, "steps": 2})
        for lr in (1e-2, 3e-2)
    ]
    runner = Runner(toy, 8, "2k")
    del made[:]
    rows = [runner.do(run, svfit).row for run in runs]
    layers = len(made)
    alone = Runner(toy, 8, "2k").do(runs[1], svfit).row
    assert len(made) == 2 * layers > 0
    assert rows[1]["validation_loss"] == alone["validation_loss"]
    assert rows[0]["validation_loss"] != rows[1]["validation_loss"]
