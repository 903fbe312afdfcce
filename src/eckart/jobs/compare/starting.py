"""A comparison begins: its directory is claimed, its study opened, and the race is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from eckart.files import attended
from eckart.jobs.compare import outputs
from eckart.jobs.compare.contender import Contender
from eckart.jobs.compare.judgement import Terms, look_level
from eckart.jobs.compare.plan import Plan
from eckart.jobs.compare.progress import Progress
from eckart.jobs.compare.race import Jury, Race
from eckart.jobs.compare.study import Study
from eckart.jobs.compare.workers import workers_beside
from eckart.jobs.repeat import CONFIG, compare_options, compared, write_config

if TYPE_CHECKING:
    import pandas as pd

    from eckart.tasks.task import Task


@dataclass(frozen=True)
class Entry:
    """What a comparison is, once all that was given is known to be good.

    Args:
        command: that repeats it.
        identity: what decides its numbers besides model and data: ``budget``, ``steps``, ``batch_size`` and others.
        seeds: final runs of a method at most.
        at_most: the user's limits, by the words of `COSTS`.
        cost: what the cheapest is cheapest by.
        extend: whether learning rates beyond the given ones are tried where the best is at an end.
        time: seconds that it may take.
        workers: processes of this machine that share the runs.
        words: what calls another of them, without the program's name.
    """

    command: str
    identity: Mapping[str, Any]
    seeds: int
    at_most: Mapping[str, float]
    cost: str = "bytes"
    extend: bool = True
    time: float | None = None
    workers: int | str = 1
    words: Sequence[str] = ()


def run(
    task: Task,
    everyone: Sequence[Contender],
    entry: Entry,
    directory: Path,
    deadline: float | None,
    storage: str | None,
    *,
    overwrite: bool,
    progress: bool,
) -> pd.DataFrame:
    """Race the methods, and write the results into a directory.

    Args:
        task: what is compared on.
        everyone: all methods, also those left out.
        entry: what the comparison is.
        directory: of the results.
        deadline: when the time is up, by `time.monotonic`.
        storage: URL of a shared database; None for one in the directory.
        overwrite: discard an earlier comparison.
        progress: show what happens on standard error.

    Raises:
        InputError: the directory holds another comparison, or the storage cannot be opened.
        KeyboardInterrupt: passed on after the results so far were written.
    """
    from eckart.jobs.compare.runs import Runner

    identity = dict(entry.identity)
    terms = Terms(look_level(entry.seeds - 1), entry.at_most, entry.cost)
    about = _about(entry.command, task, entry.seeds, json.loads(json.dumps(identity)))
    about |= {"level": terms.level, "at_most": dict(entry.at_most), "cost": entry.cost}
    study = _begin(directory, about, task, storage, overwrite)
    display = Progress({c.name: c.label for c in everyone}, show=progress)
    runner = Runner(task, identity["batch_size"], identity["budget"])
    jury = Jury(runner, everyone, terms)
    taking_part = [c for c in everyone if not c.reason]
    plan = Plan(
        taking_part,
        identity["steps"],
        entry.seeds,
        task.greater_is_better,
        jury.judge,
        entry.extend,
        entry.time,
    )
    race = Race(runner, plan, jury, study, directory, about, display)
    with attended(directory):
        with workers_beside(entry.workers, entry.words, directory):
            results = race.work(deadline)
        return results if entry.workers == 1 else race.write(race.state, report=True)


def _about(command: str, task: Task, seeds: int, identity: dict[str, Any]) -> dict[str, Any]:
    """What ``compare.json`` says of a comparison that begins."""
    from eckart.tasks.environment import machine, versions

    options = {name: identity[name] for name in ("steps", "batch_size", "max_length")}
    return {
        "command": command,
        "state": "running",
        "task": task.describe(),
        "budget": identity["budget"],
        "options": options | {"seeds": seeds},
        "identity": identity,
        "versions": versions(),
        "machine": machine(),
    }


def _begin(directory: Path, about: dict[str, Any], task: Task, storage: str | None, overwrite: bool) -> Study:
    """Open the study and write ``compare.json``; nothing is touched before all of it is known to be good.

    Args:
        directory: of the results.
        about: as `_about`; the time of the start is added, that of an earlier call where there is one.
        task: what is compared on.
        storage: URL of a shared database; None for one in the directory.
        overwrite: discard an earlier comparison.

    Raises:
        InputError: the directory holds another comparison, or the storage cannot be opened.
    """
    about["started"] = (None if overwrite else outputs.begun(directory, about)) or outputs.now()
    content = json.dumps([task.fingerprint, about["identity"]], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    shared = _open_study(storage, digest, task.greater_is_better, overwrite) if storage else None
    if overwrite:
        outputs.clear(directory)
    outputs.write_about(directory, about)
    write_config(directory / CONFIG, compared(about["command"]), compare_options(about["command"]))
    url = f"sqlite:///{quote(str((directory / outputs.DATABASE).resolve()))}"
    return shared or _open_study(url, digest, task.greater_is_better, overwrite)


def _open_study(url: str, digest: str, maximize: bool, overwrite: bool) -> Study:
    name = f"eckart-compare-{digest}"
    study = Study(url, name, maximize=maximize)
    if overwrite:
        study.delete()
        study = Study(url, name, maximize=maximize)
    return study
