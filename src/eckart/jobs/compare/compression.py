"""`eckart.compare_compression`: methods that make a model smaller, at the same size, scored on a test split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Unpack

from eckart.arguments import check_least
from eckart.compression._asked import check_size
from eckart.errors import InputError
from eckart.extras import require
from eckart.jobs.compare import outputs
from eckart.jobs.compare.compressed import RATIO, compressions
from eckart.jobs.compare.contenders import Rates
from eckart.jobs.compare.presets import OWN, limits_of_use, seconds
from eckart.jobs.compare.starting import Entry, run
from eckart.quiet import quiet
from eckart.tasks.asked import check_asked
from eckart.tasks.options import TaskOptions, beyond_data
from eckart.tasks.smaller import CALIBRATION, note_calibration

if TYPE_CHECKING:
    import os

    import pandas as pd

COMMAND = "compare compression"


def compare_compression(
    model: str | None = None,
    data: str | None = None,
    *,
    methods: str | Sequence[str] = "all",
    ratio: float | None = None,
    budget: str | None = None,
    steps: int = 0,
    seeds: int | None = None,
    learning_rates: Rates = None,
    calibration: int = CALIBRATION,
    batch_size: int | None = None,
    max_length: int | None = None,
    limits: Mapping[str, int] | None = None,
    output: str | os.PathLike[str] = "eckart-compare",
    storage: str | None = None,
    time: str | float | None = None,
    max_bytes: str | float | None = None,
    overwrite: bool = False,
    progress: bool = True,
    on_task: Callable[[dict[str, Any]], None] | None = None,
    **task_options: Unpack[TaskOptions],
) -> pd.DataFrame:
    """Compress a model with every method to the same size, heal it if asked, and say which method to use.

    The dense model and the trivial predictor stand beside them. Differences are paired by test example. Besides the
    score there are the bytes of the weights, the times of a forward pass and of generation as multiples of the dense
    model's in the same process, and the time of compressing.

    Args:
        model: directory or hub name of a `transformers` model; an embedded one when None (see `find_model`).
        data: file, directory or hub name, for calibration, healing and scores; the embedded docstrings when None.
        methods: ``"all"``, ``"a,b,c"`` or a list; see `eckart.methods("compression")`.
        ratio: share of the parameters of the linear layers (convolutions for "trp") to remove; a fifth when neither
            this nor ``budget`` is given.
        budget: instead, the size of the whole model: ``"70%"``, ``"95M"`` or ``"180MB"``.
        steps: optimiser steps of healing; tuning runs have half as many. A model with a head of its own needs some.
        seeds: final runs of a method at most, where there is healing; without it a run has no luck.
        learning_rates: of healing, for every method or by name; when None three around 1e-4, and further ones where
            the best is the largest or smallest tried.
        calibration: training examples (for text, blocks of ``max_length`` tokens) that the statistics see.
        batch_size: examples in a step, and of a batch of calibration.
        max_length: tokens of an example at most.
        limits: most examples of a split, such as ``{"train": 2000, "test": 500}``.
        output: directory of the results.
        storage: URL of a database that machines share; by default ``study.db`` in ``output``.
        time: what it may take, such as ``"10m"``; what it needs when None.
        max_bytes: methods whose weights take more are no candidates.
        overwrite: discard an earlier comparison in ``output``.
        progress: show what happens on standard error.
        on_task: called with `Task.describe`, what was understood of model and data, before anything is done.
        task_options: what the task is: see `eckart.tasks.options.TaskOptions`.

    Returns:
        One row for each run, as in ``results.csv``.

    Raises:
        InputError: bad input, with the remedy; nothing was compressed.
        KeyboardInterrupt: passed on after the results so far were written.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("task_options", "on_task")}
    arguments = {name: value for name, value in (arguments | task_options).items() if value is not None}
    check_least(0, steps=steps)
    check_least(1, seeds=seeds, batch_size=batch_size, max_length=max_length, calibration=calibration)
    check_size(ratio, budget)
    if not steps and (learning_rates is not None or seeds is not None):
        named = "learning_rates" if learning_rates is not None else "seeds"
        raise InputError(f"{named} without steps: nothing is healed: give steps, or leave {named} out")
    ratio = RATIO if ratio is None and budget is None else ratio
    allowed = None if time is None else seconds(time)
    deadline = None if allowed is None else monotonic() + allowed
    at_most = limits_of_use(None, max_bytes, None)
    batch_size, max_length = batch_size or OWN.batch_size, max_length or OWN.max_length
    directory = outputs.check_directory(Path(output), overwrite, {"--model": model, "--data": data})
    check_asked(model, data, batch_size, task_options)
    for module in ("optuna", "pandas", "pyarrow", "jinja2", "psutil", "scipy"):
        require(module, extra="compare")

    from eckart.tasks.task import load_task

    trials = OWN.trials if steps else 0
    with quiet():
        task = load_task(
            model, data, max_length=max_length, limits=dict(limits or {}), seed=0, **task_options
        )
        if task.head_modules and not steps:
            heads = ", ".join(task.head_modules)
            raise InputError(
                f"steps is 0, and the head of this task ({heads}) is new: give steps to train it"
            )
        sizes = {"ratio": ratio, "size": budget, "calibration": calibration, "batch_size": batch_size}
        note_calibration(task, calibration)
        everyone = compressions(task, methods, sizes, learning_rates, trials)
    if on_task is not None:
        on_task(task.describe())
    identity: dict[str, Any] = {
        "budget": f"{budget} of the model" if budget else f"{ratio:.3g} of the layers removed",
        "steps": steps,
        "batch_size": batch_size,
        "max_length": max_length,
        "calibration": calibration,
        "learning_rates": learning_rates or f"{trials} of each method's own",
        "plan": "race",
        **beyond_data(task_options),
    }
    entry = Entry(
        outputs.command_line(arguments, COMMAND),
        identity,
        seeds or (OWN.seeds if steps else 1),
        at_most,
        extend=learning_rates is None,
        time=allowed,
    )
    return run(task, everyone, entry, directory, deadline, storage, overwrite=overwrite, progress=progress)
