"""A failure around a run is no result: it is waited out, or the run stays free."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from eckart.jobs.compare import setbacks
from eckart.jobs.compare.setbacks import ATTEMPTS, database_lost, is_setback, patient
from eckart.jobs.compare.study import Outcome, Run, Study

RUNS = [Run(f"run-{i}", {"i": i}) for i in range(3)]


def plan(records: Any) -> list[Run]:
    return [run for run in RUNS if run.id not in records]


def lost(
    message: str = "server closed the connection", kind: type[Exception] = Exception
) -> OperationalError:
    return OperationalError("SELECT 1", {}, kind(message))


def test_what_is_a_setback() -> None:
    for error in (
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EMFILE, "Too many open files"),
        RuntimeError("basic_ios::clear: iostream error"),
        lost(),
    ):
        assert is_setback(error), error
        try:
            raise ValueError("around it") from error
        except ValueError as around:
            assert is_setback(around)
    for error in (
        ValueError("out of memory"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        FloatingPointError("the loss is nan"),
        lost("no such table: studies", sqlite3.OperationalError),
    ):
        assert not is_setback(error), error
    assert database_lost(lost("database is locked", sqlite3.OperationalError))


class Flaky:
    """A storage whose calls fail a number of times."""

    def __init__(self, error: Exception, failures: int) -> None:
        self.error, self.left, self.calls = error, failures, 0

    def get_all_trials(self, study: int, deepcopy: bool = True) -> list[int]:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise RuntimeError("An exception is raised during the commit") from self.error
        return [study]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made; time passes only in them."""
    pauses: list[float] = []
    monkeypatch.setattr(setbacks.time, "sleep", pauses.append)
    monkeypatch.setattr(setbacks.time, "monotonic", lambda: sum(pauses))
    return pauses


def test_a_database_out_of_reach_is_waited_for(clock: list[float]) -> None:
    storage = patient(Flaky(lost(), 8))
    assert storage.get_all_trials(7, deepcopy=False) == [7]
    assert clock == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])


def test_not_for_ever_and_not_for_another_error(clock: list[float]) -> None:
    with pytest.raises(RuntimeError, match="during the commit"):
        patient(Flaky(lost(), 10**6)).get_all_trials(7)
    assert 110 < sum(clock) <= setbacks.PATIENCE_SECONDS
    clock.clear()
    storage = patient(Flaky(ValueError("a bug"), 1))
    with pytest.raises(RuntimeError):
        storage.get_all_trials(7)
    assert (storage.calls, clock) == (1, [])


def test_an_outage_in_the_middle_of_the_work(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from optuna.storages import RDBStorage

    outage = [0]

    def breaking(name: str) -> Any:
        plain = getattr(RDBStorage, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if outage[0]:
                outage[0] -= 1
                raise lost()
            return plain(self, *args, **kwargs)

        return call

    for name in ("create_new_trial", "_get_trials", "set_trial_user_attr", "set_trial_state_values"):
        monkeypatch.setattr(RDBStorage, name, breaking(name))
    study = Study(f"sqlite:///{tmp_path}/study.db", "s", maximize=True)

    def execute(claim: Any) -> Outcome:
        outage[0] = 5
        return Outcome({"i": claim.run.parameters["i"]}, "complete", 1.0)

    def after(run: Run) -> None:
        outage[0] = 5

    assert study.work(plan, execute, after=after)
    assert [record["i"] for record in study.records().values()] == [0, 1, 2]
    assert sum(clock) > 6 * 3


def test_a_trial_entered_twice_is_taken_once(tmp_path: Path) -> None:
    study = Study(f"sqlite:///{tmp_path}/study.db", "s", maximize=True)
    enter = study._storage.create_new_trial
    study._storage.create_new_trial = lambda *args: (enter(*args), enter(*args))[
        1
    ]  # the first answer was lost
    assert study.work(plan, lambda claim: Outcome({"i": claim.run.parameters["i"]}, "complete", 1.0))
    assert sorted(study.records()) == ["run-0", "run-1", "run-2"]
    assert all(trial.state.is_finished() for trial in study._trials())


def test_a_setback_is_tried_again_then_left_free(tmp_path: Path) -> None:
    url, begun = f"sqlite:///{tmp_path}/study.db", []

    def execute(claim: Any) -> Outcome:
        begun.append(claim.run.id)
        if claim.run.id == "run-1" or begun.count("run-2") == 1 == len(
            [b for b in begun if b == claim.run.id]
        ):
            raise MemoryError("no memory")
        return Outcome({"i": claim.run.parameters["i"]}, "complete", 1.0)

    study = Study(url, "s", maximize=True)
    assert not study.work(plan, execute)
    assert begun.count("run-1") == ATTEMPTS
    assert study.setbacks == {"run-1": ["no memory"] * ATTEMPTS}
    assert sorted(study.records()) == ["run-0", "run-2"]
    again = Study(url, "s", maximize=True)
    assert again.work(plan, lambda claim: Outcome({"i": claim.run.parameters["i"]}, "complete", 1.0))
    assert sorted(again.records()) == ["run-0", "run-1", "run-2"]
