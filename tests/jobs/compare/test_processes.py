"""`compare` in processes of its own: killed, interrupted, two at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import torch
import toy_task
from toy_task import install

from eckart.errors import InputError
from eckart.jobs.compare.comparison import compare

OPTIONS = {"methods": "lora", "budget": "2k", "steps": 4, "seeds": 2, "batch_size": 8, "progress": False}
OPTIONS |= {"learning_rates": [3e-4, 1e-3, 3e-3]}
RUNS = 1 + 3 * 3 + 3 * 2
PATIENCE = 120


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    import eckart.tasks.task as tasks

    torch.set_num_threads(1)
    monkeypatch.setattr(tasks, "load_task", tasks.load_task)  # put back what install replaces
    install()


def start(output: Path, pause: float) -> subprocess.Popen[bytes]:
    """Begin a comparison in another process; each of its runs takes at least ``pause`` seconds."""
    call = OPTIONS | {"output": str(output), "toy": {"pause": pause}}
    script = Path(toy_task.__file__)
    return subprocess.Popen(
        [sys.executable, str(script), json.dumps(call)],
        stderr=subprocess.PIPE,
        # A background job of a shell ignores Ctrl-C and hands that on: here it must not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def trials(output: Path) -> list[Any]:
    url = f"sqlite:///{output}/study.db"
    names = optuna.get_all_study_names(url)
    return optuna.load_study(study_name=names[0], storage=url).trials if names else []


def wait_for_rows(output: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(10 * PATIENCE):
        assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
        # the trivial predictor is a row too
        if (output / "results.csv").exists() and len(pd.read_csv(output / "results.csv")) > count:
            return
        time.sleep(0.1)
    pytest.fail("the other process did not get that far")


def once_each(output: Path) -> bool:
    done = Counter(trial.user_attrs["run"] for trial in trials(output) if "record" in trial.user_attrs)
    return len(done) == RUNS and set(done.values()) == {1}


def test_a_killed_comparison_goes_on_where_it_was(tmp_path: Path) -> None:
    process = start(tmp_path, pause=0.3)
    wait_for_rows(tmp_path, 3, process)
    process.kill()
    process.wait()
    before = {
        trial.number: trial.datetime_complete for trial in trials(tmp_path) if "record" in trial.user_attrs
    }
    assert len(before) >= 3
    assert not list(tmp_path.glob("adapters/*/*")) and json.loads((tmp_path / "compare.json").read_text())

    results = compare(**OPTIONS | {"output": tmp_path})
    after = trials(tmp_path)
    assert once_each(tmp_path) and len(results) == RUNS + 1, "with the trivial predictor"
    assert len(after) - RUNS <= 1, "no more than the run in flight was lost"
    assert all(after[number].datetime_complete == when for number, when in before.items())


def test_ctrl_c_stops_cleanly(tmp_path: Path) -> None:
    process = start(tmp_path, pause=0.3)
    wait_for_rows(tmp_path, 2, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    results = pd.read_csv(tmp_path / "results.csv")
    finished = [trial for trial in trials(tmp_path) if "record" in trial.user_attrs]
    assert len(results) - 1 == len(finished) >= 2
    assert all(trial.state.is_finished() for trial in trials(tmp_path)), "the run in flight is free again"
    assert json.loads((tmp_path / "compare.json").read_text())["state"] == "interrupted"
    assert (tmp_path / "report.html").exists()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_two_processes_share_the_runs(tmp_path: Path) -> None:
    process = start(tmp_path, pause=0.2)
    wait_for_rows(tmp_path, 1, process)
    with pytest.raises(InputError, match=f"process {process.pid} works in it"):
        compare(**OPTIONS | {"output": tmp_path, "overwrite": True})
    results = compare(**OPTIONS | {"output": tmp_path})
    assert process.wait(PATIENCE) == 0, process.stderr.read().decode()  # type: ignore[union-attr]
    assert len(results) == RUNS + 1 and once_each(tmp_path)
    workers = Counter(trial.user_attrs["worker"]["pid"] for trial in trials(tmp_path))
    assert len(workers) == 2, "both did something"
    assert len(pd.read_csv(tmp_path / "results.csv")) == RUNS + 1
