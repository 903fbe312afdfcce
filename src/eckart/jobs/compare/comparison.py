"""`eckart.compare`: every method at one budget on the same batches, tuned alike, scored on a test split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Unpack

from eckart.arguments import check_least, read_budget
from eckart.errors import InputError
from eckart.extras import require
from eckart.jobs.compare import outputs
from eckart.jobs.compare.contenders import Rates, contenders
from eckart.jobs.compare.judgement import COSTS
from eckart.jobs.compare.names import ADAMW
from eckart.jobs.compare.presets import limits_of_use, seconds
from eckart.jobs.compare.protocols import settle, write_board
from eckart.jobs.compare.starting import Entry, run
from eckart.jobs.compare.workers import check_workers
from eckart.quiet import quiet
from eckart.tasks.asked import check_asked
from eckart.tasks.optimizers import check_optimizer
from eckart.tasks.options import TaskOptions, beyond_data, check_recipe

if TYPE_CHECKING:
    import os

    import pandas as pd


def compare(
    model: str | None = None,
    data: str | None = None,
    *,
    methods: str | Sequence[str] = "all",
    budget: str | int = "0.5%",
    steps: int | None = None,
    seeds: int | None = None,
    learning_rates: Rates = None,
    batch_size: int | str | None = None,
    max_length: int | None = None,
    target_modules: str | Sequence[str] | None = None,
    optimizer: str = ADAMW,
    limits: Mapping[str, int] | None = None,
    output: str | os.PathLike[str] = "eckart-compare",
    storage: str | None = None,
    workers: int | str = 1,
    time: str | float | None = None,
    max_memory: str | float | None = None,
    max_bytes: str | float | None = None,
    max_step_time: str | float | None = None,
    cost: str = "bytes",
    quick: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    on_task: Callable[[dict[str, Any]], None] | None = None,
    **task_options: Unpack[TaskOptions],
) -> pd.DataFrame:
    """Race every method at the same budget on the same batches, tuned alike, and say which to use.

    The answer is valid whenever the race stops. The same call again goes on where the last one stopped, and when all
    is done only rewrites the report. Methods and seeds may be added; whatever else differs asks for another
    ``output``.

    Args:
        model: directory or hub name of a `transformers` model; an embedded one when None (see `find_model`).
        data: file, directory or hub name; the embedded docstrings of Python's standard library when None.
        methods: ``"all"``, ``"a,b,c"`` or a list. Head only, full fine-tuning and LoRA are always there.
            ``"lora+allora"`` is an adapter under a rule, ``"peft:dora"`` a method of PEFT's, ``"full@galore"`` one
            trained by an optimiser of its own.
        budget: ``"0.5%"`` of the model's parameters, ``"200k"``, ``"1MB"`` saved, or a number of parameters.
        steps: optimiser steps of a final run; tuning runs have half as many.
        seeds: final runs of a method at most.
        learning_rates: values for every adapter, or for each method by name; when None each method's own, and further
            ones where the best is the largest or smallest tried.
        batch_size: examples in a step; "auto" for as many as without it, for each method in as few parts as the memory
            holds.
        max_length: tokens of an example at most.
        target_modules: the layers adapted: names, a regular expression or ``"all-linear"``; the task's own when None.
        optimizer: that trains all but the head alone and those that name another; a key of
            `eckart.tasks.optimizers.OPTIMIZERS`.
        limits: most examples of a split, such as ``{"train": 2000, "test": 500}``.
        output: directory of the results.
        storage: URL of a database that machines share, such as ``postgresql://user@host/database``; by default
            ``study.db`` in ``output``.
        workers: processes of this machine that share the runs; "auto" for one a GPU, else one for every four cores.
        time: what the race may take, such as ``"10m"``; ten minutes on the embedded data, otherwise what it needs.
        max_memory, max_bytes, max_step_time: methods that need more peak memory, bytes saved, or time of a step (as a
            multiple of the frozen model's) are no candidates.
        cost: what the cheapest of several is cheapest by: ``"bytes"``, ``"memory"`` or ``"step-time"``.
        quick: a first impression: few steps, one learning rate, one seed.
        overwrite: discard an earlier comparison in ``output``.
        progress: show what happens on standard error.
        on_task: called with `Task.describe`, what was understood of model and data, before anything is trained.
        task_options: what the task is, such as ``kind="chat"`` or ``metric="mcc"``: see
            `eckart.tasks.options.TaskOptions`. With ``recipe="metamath"`` its settings are taken where none are given,
            and the final runs are in ``metamath.csv`` too, in the columns of PEFT's board.

    Returns:
        One row for each run, as in ``results.csv``.

    Raises:
        InputError: bad input, with the remedy; nothing was trained.
        KeyboardInterrupt: passed on after the results so far were written.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("task_options", "on_task")}
    arguments |= task_options
    arguments = {name: value for name, value in arguments.items() if value is not None}
    kind, recipe = task_options.get("kind", "auto"), task_options.get("recipe")
    check_least(1, steps=steps, seeds=seeds, max_length=max_length)
    check_recipe(recipe, kind)
    asked = {"steps": steps, "seeds": seeds, "batch_size": batch_size, "max_length": max_length}
    preset, spent, task_options = settle(quick, data, asked, task_options)
    steps, seeds, batch_size, max_length = (spent[name] for name in asked)
    allowed = preset.time if time is None else seconds(time)
    deadline = None if allowed is None else monotonic() + allowed
    at_most = limits_of_use(max_memory, max_bytes, max_step_time)
    check_workers(workers)
    if cost not in COSTS:
        raise InputError(f"cost is {cost!r}: choose {', '.join(COSTS)}")
    directory = outputs.check_directory(Path(output), overwrite, {"--model": model, "--data": data})
    read_budget(budget)
    check_optimizer(optimizer)
    check_asked(model, data, batch_size, task_options)
    for module in ("optuna", "pandas", "pyarrow", "jinja2", "psutil", "scipy"):
        require(module, extra="compare")

    from eckart.tasks.task import load_task

    with quiet():
        task = load_task(
            model,
            data,
            max_length=max_length,
            limits=preset.limits(limits),
            seed=0,
            **task_options,
        )
        everyone = contenders(task, methods, budget, learning_rates, preset.trials, target_modules, optimizer)
    if on_task is not None:
        on_task(task.describe())
    identity: dict[str, Any] = {
        "budget": str(budget),
        "steps": steps,
        "batch_size": batch_size,
        "max_length": max_length,
        "target_modules": target_modules or "default",
        "learning_rates": learning_rates or f"{preset.trials} of each method's own",
        "plan": "race",
        **({} if optimizer == ADAMW else {"optimizer": optimizer}),
        **beyond_data(task_options),
    }
    entry = Entry(
        outputs.command_line(arguments),
        identity,
        seeds,
        at_most,
        cost,
        learning_rates is None,
        allowed,
        workers,
        outputs.worker_words(arguments),
    )
    results = run(task, everyone, entry, directory, deadline, storage, overwrite=overwrite, progress=progress)
    if recipe is not None:
        write_board(directory, results)
    return results
