"""`eckart.compare`: every method at one budget on the same batches, tuned alike, scored on a test split."""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from eckart.arguments import check_least, check_positive, read_budget
from eckart.data.read import check_source
from eckart.extras import require
from eckart.files import atomic_directory, atomic_write, attended
from eckart.jobs.compare import outputs
from eckart.jobs.compare.contenders import Contender, Rates, contenders
from eckart.jobs.compare.plan import FINAL, FLOOR, TUNE, Plan, Records
from eckart.jobs.compare.progress import Progress, Scoreboard
from eckart.jobs.compare.study import Claim, Outcome, Run, Study
from eckart.quiet import quiet
from eckart.tasks.pretrained import find_model

if TYPE_CHECKING:
    import os

    import pandas as pd

    from eckart.jobs.compare.runs import Runner
    from eckart.tasks.task import Task


@dataclass(frozen=True)
class Preset:
    """What a comparison spends where the caller does not say. A limit of None takes the whole split."""

    steps: int
    seeds: int
    trials: int
    batch_size: int
    max_length: int
    validation: int | None
    test: int | None


EMBEDDED = Preset(steps=24, seeds=2, trials=3, batch_size=16, max_length=48, validation=160, test=600)
"""The data that comes with the library: 16 to 17 minutes on two cores with 15 adapters."""
QUICK = Preset(steps=16, seeds=1, trials=1, batch_size=16, max_length=48, validation=100, test=300)
"""``quick``: 3 to 4 minutes. The middle learning rate of each method, one seed."""
OWN = Preset(steps=400, seeds=3, trials=3, batch_size=16, max_length=128, validation=1000, test=None)
"""Data of the caller's."""

CURVE_COLUMNS = ["run_id", "step", "split", "loss", "score"]


def compare(
    model: str | None = None,
    data: str | None = None,
    *,
    methods: str | Sequence[str] = "all",
    budget: str | int = "0.5%",
    steps: int | None = None,
    seeds: int | None = None,
    learning_rates: Rates = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    target_modules: str | Sequence[str] | None = None,
    kind: str = "auto",
    text_column: str | None = None,
    label_column: str | None = None,
    limits: Mapping[str, int] | None = None,
    output: str | os.PathLike[str] = "eckart-compare",
    storage: str | None = None,
    timeout: float | None = None,
    quick: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Train every method at the same budget on the same batches, tune each alike, and score them on the test split.

    The same call again goes on where the last one stopped, and when all is done only rewrites the report. Methods
    and seeds may be added; whatever else differs asks for another ``output``.

    Args:
        model: directory or hub name of a `transformers` model; an embedded one when None (see `find_model`).
        data: file, directory or hub name; the embedded docstrings of Python's standard library when None.
        methods: ``"all"``, ``"a,b,c"`` or a list. Head only, full fine-tuning and LoRA are always there.
        budget: ``"0.5%"`` of the model's parameters, ``"200k"``, ``"1MB"`` saved, or a number of parameters.
        steps: optimiser steps of a final run; a tuning run has half as many.
        seeds: final runs of each method.
        learning_rates: values for every adapter, or for each method by name; each method's own when None.
        batch_size: examples in a step.
        max_length: tokens of an example at most.
        target_modules: the layers adapted: names, a regular expression or ``"all-linear"``; the task's own when None.
        kind: ``"text-classification"``, ``"causal-lm"``, ``"image-classification"`` or ``"auto"``.
        text_column: the column of the text, where the data has columns.
        label_column: the column of the label.
        limits: most examples of a split, such as ``{"train": 2000, "test": 500}``.
        output: directory of the results.
        storage: URL of a database that machines share, such as ``postgresql://user@host/database``; by default
            ``study.db`` in ``output``.
        timeout: seconds after which no further run is begun.
        quick: a first impression: few steps, one learning rate, one seed.
        overwrite: discard an earlier comparison in ``output``.
        progress: show what happens on standard error.

    Returns:
        One row for each run, as in ``results.csv``.

    Raises:
        InputError: bad input, with the remedy; nothing was trained.
        KeyboardInterrupt: passed on after the results so far were written.
    """
    arguments = {name: value for name, value in locals().items() if value is not None}
    deadline = None if timeout is None else time.monotonic() + timeout
    check_positive(steps=steps, seeds=seeds, batch_size=batch_size, max_length=max_length, timeout=timeout)
    check_least(1, steps=steps, seeds=seeds, batch_size=batch_size, max_length=max_length)
    preset = QUICK if quick else EMBEDDED if data is None else OWN
    steps, seeds = steps or preset.steps, seeds or preset.seeds
    batch_size, max_length = batch_size or preset.batch_size, max_length or preset.max_length
    directory = outputs.check_directory(Path(output), overwrite, {"--model": model, "--data": data})
    read_budget(budget)
    if model is not None or data is None:  # else the data tell which one is meant
        find_model(model, kind)
    check_source(data)
    for module in ("optuna", "pandas", "pyarrow", "jinja2", "psutil", "scipy"):
        require(module, extra="compare")

    from eckart.jobs.compare.runs import Runner
    from eckart.tasks.task import load_task

    with quiet():
        sizes = {split: getattr(preset, split) for split in ("validation", "test")} | dict(limits or {})
        task = load_task(
            model,
            data,
            kind=kind,
            text_column=text_column,
            label_column=label_column,
            max_length=max_length,
            limits={split: size for split, size in sizes.items() if size is not None},
            seed=0,
        )
        everyone = contenders(task, methods, budget, learning_rates, preset.trials, target_modules)
    identity: dict[str, Any] = {
        "budget": str(budget),
        "steps": steps,
        "batch_size": batch_size,
        "max_length": max_length,
        "target_modules": target_modules or "default",
        "learning_rates": learning_rates or f"{preset.trials} of each method's own",
    }
    about = _about(outputs.command_line(arguments), task, seeds, json.loads(json.dumps(identity)))
    study = _begin(directory, about, task, storage, overwrite)
    plan = Plan([c for c in everyone if not c.reason], steps, seeds, task.greater_is_better)
    display = Progress({c.name: c.label for c in everyone}, show=progress)
    runner = Runner(task, plan, batch_size, str(budget), display.step)
    with attended(directory):
        return _Comparison(runner, everyone, study, directory, about, display).work(deadline)


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
    url = f"sqlite:///{quote(str((directory / outputs.DATABASE).resolve()))}"
    return shared or _open_study(url, digest, task.greater_is_better, overwrite)


def _open_study(url: str, digest: str, maximize: bool, overwrite: bool) -> Study:
    name = f"eckart-compare-{digest}"
    study = Study(url, name, maximize=maximize)
    if overwrite:
        study.delete()
        study = Study(url, name, maximize=maximize)
    return study


@contextmanager
def _short_collections() -> Iterator[None]:
    """Leave what is already loaded out of garbage collections, which each run forces: a tenth of the time of each."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Comparison:
    """Works off a plan in a study and keeps the files of the results up to date.

    Args:
        runner: does the runs.
        everyone: all methods, also those left out.
        study: where runs are claimed and kept.
        directory: where results are written.
        about: what ``compare.json`` says besides the state of the study.
        progress: where to show what happens.
    """

    def __init__(
        self,
        runner: Runner,
        everyone: Sequence[Contender],
        study: Study,
        directory: Path,
        about: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        self.runner, self.plan, self.everyone = runner, runner.plan, everyone
        self.study, self.directory, self.about, self.progress = study, directory, about, progress
        self.scoreboard = Scoreboard(everyone, self.plan, runner.task.metric, progress)
        self.contenders = {c.name: c for c in self.plan.contenders}

    def work(self, deadline: float | None) -> pd.DataFrame:
        """Do what is left to do and write the results after every run, the report at the end of each stage.

        Raises:
            KeyboardInterrupt: after the results were written; the run in flight is free again.
        """
        self.write("running")
        try:
            with self.progress, quiet(), _short_collections():
                self._show(self.study.records(), FLOOR)
                done = self.study.work(
                    self.plan, self._execute, deadline=deadline, after=self._after, waiting=self._wait
                )
        except KeyboardInterrupt:
            self.write("interrupted", report=True)
            raise
        for run_id, met in self.study.setbacks.items():
            self.progress.say(f"{run_id} is left for another call: {met[-1]}")
        return self.write(
            "complete" if done else "setback" if self.study.setbacks else "timeout", report=True
        )

    def _execute(self, claim: Claim) -> Outcome:
        run = claim.run
        contender = self.contenders.get(run.parameters["method"])
        earlier = self.plan.trials(contender, self.study.records()) if contender else []
        result = self.runner.do(run, contender, earlier)
        row = result.row
        first = run.parameters["stage"] == FINAL and run.parameters["seed"] == 0
        if first and contender and contender.config and row["status"] == "complete":
            with atomic_directory(
                self.directory / outputs.ADAPTERS / contender.name, overwrite=True
            ) as folder:
                result.model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[union-attr, operator]
        value = row["validation_score"] if run.parameters["stage"] == TUNE else row["score"]
        status = "failed" if row["status"] == "complete" and value is None else row["status"]
        return Outcome({"row": row, "curve": result.curve}, status, value, result.rungs)

    def _after(self, run: Run) -> None:
        records = self.study.records()
        left = self.plan(records)
        stages = [(r.parameters["stage"], r.parameters["seed"]) for r in (run, *left[:1])]
        self.write("running", report=stages[0][0] != FLOOR and len(set(stages)) == 2)
        self._show(records, run.id)

    def _wait(self) -> None:
        self.scoreboard.update(self.study.records())
        self.progress.step("waiting for other workers")

    def _show(self, records: Records, run_id: str) -> None:
        """Bring the display up to date and say how a run went."""
        self.scoreboard.update(records)
        if run_id in records:
            row = records[run_id]["row"]
            self.scoreboard.announce(row) if run_id == FLOOR else self.scoreboard.tell(row, records)

    def write(self, state: str, report: bool = False) -> pd.DataFrame:
        """Write the results as they are, each file whole."""
        import pandas as pd

        from eckart.jobs.compare.advice import advice
        from eckart.jobs.compare.report import build_report
        from eckart.jobs.compare.runs import COLUMNS, left_out

        records = self.study.records()
        rows = [record["row"] for record in records.values()]
        rows += [left_out(self.runner, contender) for contender in self.everyone if contender.reason]
        results = pd.DataFrame(rows, columns=COLUMNS)
        points = [[run, *point] for run, record in records.items() for point in record["curve"]]
        with atomic_write(self.directory / outputs.RESULTS) as path:
            results.to_csv(path, index=False)
        with atomic_write(self.directory / outputs.TABLE) as path:
            results.to_parquet(path, index=False)
        with atomic_write(self.directory / outputs.CURVES) as path:
            pd.DataFrame(points, columns=CURVE_COLUMNS).to_csv(path, index=False)
        finished = outputs.now() if state == "complete" else None
        about = {**self.about, "state": state, "finished": finished, "advice": advice(results)}
        outputs.write_about(self.directory, about)
        if report:
            build_report(self.directory)
        return results
