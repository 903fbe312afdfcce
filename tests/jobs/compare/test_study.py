"""Claims: every run is done once, whoever works on the study, and a dead worker's run is free again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from eckart.errors import InputError
from eckart.jobs.compare import study as module
from eckart.jobs.compare.study import Outcome, Run, Study, without_password

RUNS = [Run(f"run-{i}", {"i": i}) for i in range(12)]


def url(directory: Path) -> str:
    return f"sqlite:///{directory}/study.db"


def plan(records: Any) -> list[Run]:
    return [run for run in RUNS if run.id not in records]


def done(claim: Any) -> Outcome:
    return Outcome({"i": claim.run.parameters["i"]}, "complete", 1.0)


def trials(study: Study) -> Counter[str]:
    return Counter(
        f"{t.state.name.lower()}{'' if 'record' in t.user_attrs else ' empty'}" for t in study._trials()
    )


def test_work_does_everything_once_and_again_does_nothing(tmp_path: Path) -> None:
    study = Study(url(tmp_path), "s", maximize=True)
    order: list[str] = []
    assert study.work(plan, done, after=lambda run: order.append(run.id))
    assert order == [run.id for run in RUNS]
    assert study.records() == {run.id: {"i": run.parameters["i"]} for run in RUNS}
    again = Study(url(tmp_path), "s", maximize=True)
    assert again.work(plan, lambda claim: pytest.fail("a finished run was repeated"))
    assert trials(again) == {"complete": 12}


def test_workers_on_one_study_share_the_runs(tmp_path: Path) -> None:
    url_ = url(tmp_path)
    executed: list[str] = []

    def worker(_: int) -> bool:
        study = Study(url_, "s", maximize=True)  # each makes the tables, or finds them half made

        def execute(claim: Any) -> Outcome:
            executed.append(claim.run.id)
            time.sleep(0.01)
            return done(claim)

        return study.work(plan, execute)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(worker, range(4)))
    assert sorted(executed) == sorted(run.id for run in RUNS)
    assert len(Study(url_, "s", maximize=True).records()) == 12


def test_of_many_claims_for_one_run_one_wins(tmp_path: Path) -> None:
    studies = [Study(url(tmp_path), "s", maximize=True) for _ in range(6)]
    for run in RUNS[:3]:
        with ThreadPoolExecutor(6) as pool:
            claims = list(pool.map(lambda study: study.claim(run), studies))  # noqa: B023
        assert sum(claim is not None for claim in claims) == 1


def test_a_finished_run_cannot_be_claimed(tmp_path: Path) -> None:
    study = Study(url(tmp_path), "s", maximize=True)
    claim = study.claim(RUNS[0])
    assert claim is not None
    with claim.held():
        claim.finish(done(claim))
    assert study.claim(RUNS[0]) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_left_by_an_exception_is_free_again(tmp_path: Path, error: type[BaseException]) -> None:
    study = Study(url(tmp_path), "s", maximize=True)

    def interrupted(claim: Any) -> Outcome:
        raise error

    with pytest.raises(error):
        study.work(plan, interrupted)
    assert trials(study) == {"fail empty": 1}
    assert study.work(plan, done)
    assert len(study.records()) == 12


def test_an_interrupt_before_a_run_is_held_leaves_it_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, other = (Study(url(tmp_path), "s", maximize=True) for _ in range(2))
    theirs = other.claim(RUNS[1])

    def interrupted(self: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.Claim, "held", interrupted)
        with pytest.raises(KeyboardInterrupt):
            study.work(plan, done)
    assert trials(study) == {"fail empty": 1, "running empty": 1}
    assert theirs is not None and study.claim(RUNS[1]) is None, "another's run stays its own"


def test_the_run_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    script = f"""
        import os, signal
        from eckart.jobs.compare.study import Run, Study
        study = Study({url(tmp_path)!r}, "s", maximize=True)
        with study.claim(Run("run-0", {{"i": 0}})).held():
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)]).returncode == -9
    study = Study(url(tmp_path), "s", maximize=True)
    assert trials(study) == {"running empty": 1}
    assert study.work(plan, done)
    assert trials(study) == {"fail empty": 1, "complete": 12}


def test_the_run_of_a_silent_machine_is_free_after_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 1)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.1)
    study = Study(url(tmp_path), "s", maximize=True)
    study._me = study._me | {"space": "another machine"}
    lost = study.claim(RUNS[0])
    assert lost is not None
    study._storage.record_heartbeat(lost._trial_id)
    here = Study(url(tmp_path), "s", maximize=True)
    here.free_abandoned()
    assert here.claim(RUNS[0]) is None, "a worker that was heard from just now keeps its run"
    assert here.work(plan, done)
    assert len(here.records()) == 12
    lost.finish(Outcome({"i": "late"}, "complete", 2.0))
    assert here.records()["run-0"] == {"i": 0}, "what a worker brings after losing its run does not count"


def test_a_heartbeat_keeps_a_long_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 1)
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.1)
    study = Study(url(tmp_path), "s", maximize=True)
    study._me = study._me | {"space": "another machine"}
    claim = study.claim(RUNS[0])
    other = Study(url(tmp_path), "s", maximize=True)
    with claim.held():
        time.sleep(2.5)  # the database counts in whole seconds
        other.free_abandoned()
        assert other.claim(RUNS[0]) is None


def test_a_study_that_another_works_on_is_not_deleted(tmp_path: Path) -> None:
    study, other = (Study(url(tmp_path), "s", maximize=True) for _ in range(2))
    claim = other.claim(RUNS[3])
    assert claim is not None
    with pytest.raises(
        InputError, match="--overwrite: another worker is doing run-3: wait for it or stop it"
    ):
        study.delete()
    claim.finish(done(claim))
    assert other.records() == {"run-3": {"i": 3}}
    study.delete()


def test_runs_that_do_not_fit_are_passed_over(tmp_path: Path) -> None:
    study = Study(url(tmp_path), "s", maximize=True)
    assert not study.work(plan, done, fits=lambda run: run.id != "run-1")
    assert set(study.records()) == {run.id for run in RUNS} - {"run-1"}
    assert study.work(plan, done)
    assert len(study.records()) == len(RUNS)


def test_how_runs_are_filed_in_optuna(tmp_path: Path) -> None:
    import optuna

    study = Study(url(tmp_path), "s", maximize=False)
    outcomes = {
        "run-0": Outcome({}, "complete", 0.25, {1: 0.5, 2: 0.25}),
        "run-1": Outcome({}, "pruned", None, {1: 0.9}),
        "run-2": Outcome({}, "diverged"),
    }
    study.work(
        lambda records: [r for r in RUNS[:3] if r.id not in records], lambda claim: outcomes[claim.run.id]
    )
    loaded = optuna.load_study(study_name="s", storage=url(tmp_path))
    assert [t.state.name for t in loaded.trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert loaded.best_trial.value == 0.25 and loaded.best_trial.intermediate_values == {1: 0.5, 2: 0.25}
    assert loaded.direction.name == "MINIMIZE"


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("not a url", "not a database URL"),
        ("nosuchdb://host/x", "not a database URL"),
        ("sqlite:////nowhere/at/all/study.db", "cannot be opened"),
    ],
)
def test_a_bad_storage_is_one_clear_line(storage: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    with pytest.raises(InputError, match=words) as error:
        Study(storage, "s", maximize=True)
    assert "\n" not in str(error.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for scheme in ("postgresql", "postgresql+psycopg"):
        with pytest.raises(InputError, match=r"pip install 'eckart\[postgres\]'"):
            Study(f"{scheme}://user@host/database", "s", maximize=True)
    with pytest.raises(InputError, match="--storage mysql://… needs a database driver"):
        Study("mysql://user@host/database", "s", maximize=True)


def test_passwords_are_not_shown() -> None:
    assert without_password("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert without_password("sqlite:////tmp/a:b@c.db") == "sqlite:////tmp/a:b@c.db"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of our own on a socket in a temporary directory."""
    pytest.importorskip("psycopg")
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    initdb = shutil.which("initdb") or (str(found[0]) if found else None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed")
    user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
    home = Path("/tmp") / f"eckart-pg-{os.getpid()}"
    home.mkdir()
    try:
        if user:
            shutil.chown(home, **user)
        options = ["-D", str(home / "data"), "-A", "trust", "-U", "postgres", "--no-sync"]
        subprocess.run([initdb, *options], check=True, capture_output=True, cwd="/", **user)  # type: ignore[call-overload]
        postgres = Path(initdb).resolve().with_name("postgres")
        settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={home}", "-c", "fsync=off"]
        server = subprocess.Popen(  # type: ignore[call-overload]
            [postgres, "-D", home / "data", *settings],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **user,
        )
        try:
            for _ in range(100):
                if (home / ".s.PGSQL.5432").exists():
                    break
                time.sleep(0.1)
            yield f"postgresql://postgres@/postgres?host={home}"
        finally:
            server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown: does not wait for clients
            server.wait(timeout=20)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def test_workers_share_a_postgresql_database(postgres: str) -> None:
    executed: list[str] = []

    def worker(_: int) -> bool:
        def execute(claim: Any) -> Outcome:
            executed.append(claim.run.id)
            time.sleep(0.01)
            return done(claim)

        return Study(postgres, "shared", maximize=True).work(plan, execute)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(worker, range(4)))
    assert sorted(executed) == sorted(run.id for run in RUNS)
    assert set(Study(postgres, "shared", maximize=True).records()) == {run.id for run in RUNS}
