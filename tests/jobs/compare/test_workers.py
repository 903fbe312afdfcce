"""`compare` with workers of its own: how many, what each has of the machine, and that the runs are shared."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import torch
from tiny_models import save_bert, save_reviews

from eckart.cli import main
from eckart.errors import InputError
from eckart.jobs.compare import workers
from eckart.jobs.compare.comparison import compare
from eckart.jobs.compare.outputs import command_line, worker_words
from eckart.jobs.compare.runs import Runner
from eckart.jobs.compare.workers import environments, workers_beside


@pytest.mark.parametrize(
    ("cores", "gpus", "asked", "threads"),
    [
        (16, 0, "auto", [4] * 4),
        (3, 0, "auto", [3]),
        (8, 0, 3, [2] * 3),
        (2, 0, 4, [1] * 4),
        (16, 2, "auto", [8] * 2),
    ],
)
def test_what_each_worker_has(
    monkeypatch: pytest.MonkeyPatch, cores: int, gpus: int, asked: Any, threads: list[int]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    found = environments(asked)
    assert [int(each["OMP_NUM_THREADS"]) for each in found] == threads
    seen = [each.get("CUDA_VISIBLE_DEVICES") for each in found]
    assert seen == (["5", "7"] if gpus else [None] * len(threads))


def test_the_words_of_a_worker() -> None:
    given: dict[str, Any] = {
        **{"data": "a b.csv", "output": Path("x"), "overwrite": True, "progress": False, "workers": "auto"},
        **{"storage": "postgresql://me:secret@host/db", "limits": {"train": 4}, "quick": True},
    }
    told = ["compare", "--data", "a b.csv", "--output", "x", "--limit", "train=4", "--quick"]
    assert worker_words(given) == [*told, "--storage", "postgresql://me:secret@host/db"]
    assert "secret" not in command_line(given) and "--workers" not in command_line(given)


def test_none_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = tmp_path / "pids"
    monkeypatch.setattr(
        workers, "_RUN", f"import os, time; open({str(pids)!r}, 'a').write('x'); time.sleep(600)"
    )
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.01)
    threads = torch.get_num_threads()
    with pytest.raises(KeyError), workers_beside(3, [], tmp_path):
        while not pids.exists() or len(pids.read_text()) < 2:
            pass
        raise KeyError
    with workers_beside(2, [], tmp_path):
        pass
    assert torch.get_num_threads() == threads
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_two_workers_share_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do = Runner.do

    def slowly(*given: Any) -> Any:
        time.sleep(0.5)  # the other one has yet to load its libraries
        return do(*given)

    monkeypatch.setattr(Runner, "do", slowly)
    data = save_reviews(tmp_path / "reviews.csv", 60)
    words = ["--model", str(save_bert(tmp_path / "bert")), "--data", str(data), "--methods", "lora,bone,sara"]
    words += ["--budget", "20%", "--steps", "20", "--seeds", "2", "--batch-size", "8", "--max-length", "16"]
    output = tmp_path / "out"
    assert main(["compare", *words, "--workers", "2", "--output", str(output)]) == 0
    (name,) = optuna.get_all_study_names(url := f"sqlite:///{output}/study.db")
    trials = optuna.load_study(study_name=name, storage=url).trials
    done = [trial for trial in trials if "record" in trial.user_attrs]
    assert set(Counter(trial.user_attrs["run"] for trial in done).values()) == {1}
    assert len({trial.user_attrs["worker"]["pid"] for trial in trials}) == 2
    about = json.loads((output / "compare.json").read_text())
    assert about["state"] == "complete" and "--workers" not in about["command"]
    assert len(pd.read_csv(output / "results.csv")) == len(done) + 1
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("number", [0, -1, 1.5, "many", "2"])
def test_bad_numbers(number: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="workers is"):
        compare(workers=number, output=tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()
