"""A list of runs that any number of processes and machines work off together, each run done once.

The list lives in an Optuna storage; a run is one trial. Claims need no lock beside the database's own: a worker
enters a running trial for the run, then reads the trials back, and the first one entered has the run. Trials are
entered one after another (Optuna holds the study's row while it inserts), so whoever is not first sees who is.

What a finished run leaves is its trial's ``record`` attribute. A trial without one (its worker died, was interrupted,
or came second) does not count, and the run is free again.
"""

from __future__ import annotations

import os
import platform
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from eckart.errors import InputError, first_line
from eckart.extras import require
from eckart.jobs.compare.setbacks import ATTEMPTS, database_lost, is_setback, patient

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

HEARTBEAT_SECONDS = 10
"""How often a worker says that it lives."""
GRACE_SECONDS = 60
"""A worker on another machine that was silent this long is taken for dead; its run is free again."""
POLL_SECONDS = 1.0
"""How often a worker with nothing to claim looks again."""
RECORD, RUN, WORKER = "record", "run", "worker"


@dataclass(frozen=True)
class Run:
    """A piece of work: its name, which says all that decides it, and the parameters it is done with."""

    id: str
    parameters: Mapping[str, Any]


@dataclass
class Outcome:
    """What a run leaves: a JSON record, and how Optuna should file it (its own tools can plot it from that)."""

    record: dict[str, Any]
    status: str
    value: float | None = None
    values: Mapping[int, float] = field(default_factory=dict)


def without_password(url: str) -> str:
    """A database URL fit to be shown."""
    return re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", url)


def _space() -> str:
    """The space in which a process id means something: this boot of this machine, this container."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{platform.node()}:{uuid.getnode()}"


def _this_worker() -> dict[str, Any]:
    import psutil

    since = psutil.Process().create_time()
    return {"space": _space(), "pid": os.getpid(), "since": since, "token": uuid.uuid4().hex}


def _is_gone(worker: Mapping[str, Any]) -> bool:
    """Whether a worker of this machine has ended; of another machine's only its silence tells."""
    import psutil

    if worker["space"] != _space():
        return False
    try:
        return bool(abs(psutil.Process(worker["pid"]).create_time() - worker["since"]) > 1)
    except psutil.NoSuchProcess:
        return True


class Study:
    """The runs of one study in an Optuna storage.

    Args:
        url: where: ``sqlite:///path/study.db`` or ``postgresql://user@host/database``.
        name: the study's name; the same name in the same storage is the same study.
        maximize: whether a larger value is better.

    Attributes:
        setbacks: what kept this worker from runs (no memory, a full disk), by run; these stay free.

    Raises:
        InputError: the storage cannot be reached, or its driver is missing.
    """

    def __init__(self, url: str, name: str, *, maximize: bool) -> None:
        self._optuna = optuna = require("optuna", extra="compare")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.name, self.url = name, url
        self._storage = self._open(url)
        direction = "maximize" if maximize else "minimize"
        self._study = optuna.create_study(
            storage=self._storage, study_name=name, direction=direction, load_if_exists=True
        )
        self._id = self._storage.get_study_id_from_name(name)
        self._me = _this_worker()
        self.setbacks: dict[str, list[str]] = {}

    def _open(self, url: str, attempts: int = 10) -> Any:
        """The storage. Workers that start together may trip over each other's making of the tables: try again."""
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

        if url.partition(":")[0] in ("postgresql", "postgresql+psycopg"):
            require("psycopg", extra="postgres")
        options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
        for attempt in range(attempts):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
                    storage = self._optuna.storages.RDBStorage(
                        url,
                        engine_kwargs=dict(options),
                        heartbeat_interval=HEARTBEAT_SECONDS,
                        grace_period=GRACE_SECONDS,
                    )
                return patient(storage)
            except ImportError as error:
                raise InputError(
                    f"--storage {url.partition(':')[0]}://… needs a database driver that is not installed: {error}"
                ) from None
            except (ArgumentError, NoSuchModuleError):
                raise InputError(
                    f"--storage {without_password(url)} is not a database URL: give one such as postgresql://user@host/database"
                ) from None
            except (SQLAlchemyError, self._optuna.exceptions.StorageInternalError) as error:
                if attempt == attempts - 1:
                    reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
                    raise InputError(
                        f"--storage {without_password(url)} cannot be opened: {reason}"
                    ) from None
                time.sleep(0.1 * (attempt + 1))
        raise AssertionError("unreachable")

    def _trials(self) -> list[FrozenTrial]:
        trials: list[FrozenTrial] = self._study.get_trials(deepcopy=False)
        return trials

    def records(self) -> dict[str, dict[str, Any]]:
        """The records of the finished runs by run, in the order they were begun."""
        found: dict[str, dict[str, Any]] = {}
        for trial in self._trials():
            if trial.state.is_finished() and RECORD in trial.user_attrs:
                found.setdefault(trial.user_attrs[RUN], trial.user_attrs[RECORD])
        return found

    def _holds(self, trial: FrozenTrial) -> bool:
        """Whether a trial keeps its run from others: done, or being done."""
        return RECORD in trial.user_attrs or not trial.state.is_finished()

    def free_abandoned(self) -> None:
        """Let go of the runs whose workers have died."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            self._optuna.storages.fail_stale_trials(self._study)
        for trial in self._trials():
            if not trial.state.is_finished() and _is_gone(trial.user_attrs[WORKER]):
                self._close(trial._trial_id, "failed")

    def _close(self, trial_id: int, status: str, value: float | None = None) -> bool:
        """End a trial; False when someone else has ended it before."""
        states = self._optuna.trial.TrialState
        state = {"complete": states.COMPLETE, "pruned": states.PRUNED}.get(status, states.FAIL)
        try:
            values = None if value is None or state == states.FAIL else [value]
            return bool(self._storage.set_trial_state_values(trial_id, state, values))
        except self._optuna.exceptions.UpdateFinishedTrialError:
            return False

    def claim(self, run: Run) -> Claim | None:
        """Take a run, or None when another worker has it or has done it."""
        state = self._optuna.trial.TrialState.RUNNING
        attributes = {RUN: run.id, WORKER: self._me, **run.parameters}
        entry = self._optuna.create_trial(state=state, user_attrs=attributes)
        trial_id = self._storage.create_new_trial(self._id, entry)
        rivals = [t for t in self._trials() if t.user_attrs[RUN] == run.id and self._holds(t)]
        first = rivals[0]
        if (
            first._trial_id != trial_id
            and first.user_attrs[WORKER] == self._me
            and RECORD not in first.user_attrs
        ):
            self._close(first._trial_id, "failed")  # entered twice, as the database's first answer was lost
            rivals = rivals[1:]
        if rivals[0]._trial_id != trial_id:
            self._close(trial_id, "failed")
            return None
        return Claim(self, run, trial_id)

    def work(
        self,
        plan: Callable[[Mapping[str, Mapping[str, Any]]], Sequence[Run]],
        execute: Callable[[Claim], Outcome],
        *,
        fits: Callable[[Run], bool] = lambda run: True,
        after: Callable[[Run], None] = lambda run: None,
        waiting: Callable[[], None] = lambda: None,
    ) -> bool:
        """Work off what is planned, with all who work on the same study, until nothing is left.

        Args:
            plan: from the finished records, the runs that can be done now and are not, in the order wanted.
                Empty ends the work; runs that wait for others to finish appear in a later answer.
            execute: does one run.
            fits: whether a run can still be done in the time there is; those that cannot are passed over.
            after: called when a run of this worker is done.
            waiting: called now and then while all that is left is being done by others.

        Returns:
            whether everything is done; False when nothing that is left fits, or it met setbacks.
        """
        self.free_abandoned()
        while runs := plan(self.records()):
            if not (runs := [run for run in runs if fits(run)]):
                return False
            taken = {trial.user_attrs[RUN] for trial in self._trials() if self._holds(trial)}
            given_up = {run for run, met in self.setbacks.items() if len(met) >= ATTEMPTS}
            if all(run.id in given_up - taken for run in runs):
                return False
            free, claim = (run for run in runs if run.id not in taken | given_up), None
            try:
                claim = next(filter(None, map(self.claim, free)), None)
                if claim is not None:
                    with claim.held():
                        claim.finish(execute(claim))
            except Exception as error:
                if claim is None or database_lost(error) or not is_setback(error):
                    raise
                self.setbacks.setdefault(claim.run.id, []).append(first_line(error))
                continue
            except BaseException:  # an interrupt may come between taking a run and holding it
                self._let_go()
                raise
            if claim is None:
                waiting()
                time.sleep(POLL_SECONDS)
                self.free_abandoned()
                continue
            self.setbacks.pop(claim.run.id, None)
            after(claim.run)
        return True

    def _let_go(self) -> None:
        """Free what this worker has taken and not ended."""
        for trial in self._trials():
            if not trial.state.is_finished() and trial.user_attrs[WORKER] == self._me:
                self._close(trial._trial_id, "failed")

    def delete(self) -> None:
        """Forget the study with all its runs.

        Raises:
            InputError: a worker that lives is doing one of them.
        """
        self.free_abandoned()
        busy = [trial.user_attrs[RUN] for trial in self._trials() if not trial.state.is_finished()]
        if busy:
            raise InputError(
                f"--overwrite: another worker is doing {busy[0]}: wait for it or stop it, or choose another --storage"
            )
        self._storage.delete_study(self._id)


class Claim:
    """A run that this worker has, until it is finished or let go."""

    def __init__(self, study: Study, run: Run, trial_id: int) -> None:
        self.run = run
        self._study, self._trial_id = study, trial_id

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the claim alive inside the block; if it is left by an exception, the run is free again."""
        from sqlalchemy.exc import SQLAlchemyError

        stop = Event()
        beat = self._study._storage.record_heartbeat

        def pulse() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                try:
                    beat(self._trial_id)
                except (self._study._optuna.exceptions.StorageInternalError, SQLAlchemyError):
                    continue  # a database out of reach for a moment: the next beat is soon enough
            self._study._storage.remove_session()

        beat(self._trial_id)
        thread = Thread(target=pulse, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self._study._close(self._trial_id, "failed")
            raise
        finally:
            stop.set()
            thread.join()

    def finish(self, outcome: Outcome) -> None:
        """File what the run left. When the run was taken away meanwhile, what the other worker finds counts."""
        storage, finished = self._study._storage, self._study._optuna.exceptions.UpdateFinishedTrialError
        try:
            for step, value in outcome.values.items():
                storage.set_trial_intermediate_value(self._trial_id, step, value)
            storage.set_trial_user_attr(self._trial_id, RECORD, outcome.record)
        except finished:
            return
        self._study._close(self._trial_id, outcome.status, outcome.value)
