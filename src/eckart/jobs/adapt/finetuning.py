"""Fine-tune one method: checkpoints that survive a kill, and in the end a directory that PEFT loads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from eckart.adapter_files import PREPROCESSING
from eckart.arguments import check_least, check_positive, check_seed, plain
from eckart.errors import InputError
from eckart.extras import require
from eckart.files import atomic_directory, atomic_write, locked, remove_owned
from eckart.hub import upload
from eckart.jobs.adapt.card import model_card
from eckart.jobs.adapt.checks import (
    CARD,
    CHECKPOINTS,
    METRICS,
    PUSH,
    RUN,
    check_outcome,
    check_processes,
    earlier_run,
    refuse_taken,
)
from eckart.jobs.adapt.job import Job
from eckart.jobs.adapt.loram import ALIGNED, PRUNING, PrunedBase
from eckart.jobs.adapt.loram_options import LoRAM, check_loram
from eckart.jobs.adapt.reports import REPORTED
from eckart.jobs.adapt.training import train, validations
from eckart.jobs.compare.contenders import MIDDLE_RATES
from eckart.jobs.compare.names import HEAD_ONLY
from eckart.jobs.earlier import check_same, read_earlier
from eckart.jobs.repeat import CONFIG, adapt_options, write_config
from eckart.processes import is_first, shared
from eckart.tasks.environment import versions
from eckart.tasks.forgetting import bits_before, forgotten
from eckart.tasks.optimizers import check_optimizer, check_resumable
from eckart.tasks.options import TaskOptions, memory_of, sized
from eckart.tasks.pretrained import base_name
from eckart.tasks.scoring import evaluate, scoring_batch

if TYPE_CHECKING:
    from peft import PeftModel

    from eckart.adapters import AdapterConfig, PromptConfig
    from eckart.tasks.task import Task

DEFAULT_BUDGET = "0.5%"
_BEFORE: dict[str, Any] = {"optimizer": "adamw", "optimizer_options": {}, "keep": "last", "patience": None}
"""What a run had before it could be chosen."""
_IN_THIS_ORDER = ("adapter_model.safetensors", "adapter_config.json", CARD, METRICS)
_SAVED = f"{CHECKPOINTS}/checkpoint-*/**/*"
PUSHED = (*_IN_THIS_ORDER, PRUNING, "config.json", *PREPROCESSING)
"""Files that go to the hub."""
OWNED = (*PUSHED, ALIGNED, RUN, CONFIG, _SAVED, f"{REPORTED}/events.*")
"""Files of a run, which another one may replace."""


def finetune(
    model: str | None = None,
    data: str | None = None,
    method: str = "lora",
    *,
    output: str | Path,
    budget: str | None = None,
    options: Mapping[str, Any] | None = None,
    target_modules: str | list[str] | None = None,
    steps: int = 400,
    batch_size: int | str = 16,
    lr: float | None = None,
    head_lr: float | None = None,
    optimizer: str = "adamw",
    optimizer_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    save_every: int | None = None,
    validate_every: int | None = None,
    keep: str = "last",
    patience: int | None = None,
    loram: LoRAM | None = None,
    report_to: str | Sequence[str] | None = None,
    push_to_hub: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_task: Callable[[dict[str, Any]], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    **task_options: Any,
) -> dict[str, Any]:
    """Train the adapters of one method (and the task's head) and write them with their numbers and a model card.

    While it runs, ``output`` holds ``run.json`` and ``checkpoints/``; a killed run goes on with ``resume`` and ends
    with the numbers it would have had. The adapter, metrics.json and README.md appear together at the end, and the
    checkpoints go. Under a launcher such as ``torchrun`` each process takes its share of every batch, which changes the
    numbers by rounding, and what dropout draws.

    Args:
        model: model directory or hub name; None for a built-in one: MiniLM, for language modelling the code model.
        data: file, directory or hub name; None for Python's own docstrings.
        method: slug or alias, see `eckart.methods`.
        output: the directory to write.
        budget: as in `eckart.adapt`; "0.5%" when neither it nor the method's own knob is given.
        options: further fields of the method's config.
        target_modules: layers to adapt; the task's own choice when None.
        steps: optimiser steps.
        batch_size: examples a step; "auto" for 16, computed in as few parts as the memory holds.
        lr: learning rate of the adapters; the middle one that the method suggests when None.
        head_lr: learning rate of the head.
        optimizer: a key of `eckart.tasks.optimizers.OPTIMIZERS`; the head, and what is no matrix, get AdamW from those
            that are for matrices.
        optimizer_options: of the optimiser, such as ``rank``.
        seed: of the data order, the head, the adapters and dropout.
        save_every: steps between checkpoints; a tenth of all when None.
        validate_every: steps between scores on the validation split; a tenth of all when None.
        keep: "last", or "best": the weights as they were at the best score on the validation split.
        patience: evaluations without a better score after which the run is ended; None for no end before `steps`.
        loram: train on a pruned base, and write the adapter of the whole one.
        report_to: where curves are shown: of "tensorboard", "wandb" and "mlflow".
        push_to_hub: name of a repository of the hub, to which the finished adapter is uploaded.
        resume: continue the run that ``output`` holds; a finished one is returned as it is.
        overwrite: replace what an earlier run left in ``output``.
        on_task: called by the first process with `Task.describe`, what was understood of model and data, before any
            training.
        on_step: called by the first process after every step with how many are done and how many there are.
        task_options: passed to `load_task`, such as ``kind``, ``text_column``, ``max_length``, ``limits``.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: anything wrong with what was given; ``output`` is as it was.
        FloatingPointError: the loss became NaN or infinite.
        ConnectionError: the hub does not take the adapter, which is in ``output``.
    """
    from eckart.adapters import AdapterConfig, get_config
    from eckart.tasks.task import load_task

    require("scipy", extra="compare")  # for the intervals of the scores
    directory, inputs = Path(output), {"--model": model, "--data": data}
    shared(lambda: earlier_run(directory, resume=resume, overwrite=overwrite, inputs=inputs))
    size, chosen = sized(plain(batch_size), 16, cast(TaskOptions, task_options))
    task_options = dict(chosen)
    check_least(1, steps=steps, save_every=save_every, validate_every=validate_every)
    check_positive(lr=lr, head_lr=head_lr)
    report_to = check_outcome(keep, patience, report_to, push_to_hub)
    seed = check_seed(seed)
    steps, save_every, validate_every, patience = map(plain, (steps, save_every, validate_every, patience))
    lr, head_lr = plain(lr), plain(head_lr)
    options, of_optimizer = (
        {k: plain(v) for k, v in (o or {}).items()} for o in (options, optimizer_options)
    )
    check_optimizer(optimizer)
    check_processes(memory_of(chosen).part(size), memory_of(chosen).gradient_accumulation, loram is not None)
    if resume:
        check_resumable(optimizer)
    config = get_config(method)
    layers = issubclass(config, AdapterConfig)
    refuse_taken(options)
    if target_modules and not layers:
        raise InputError(
            f"target_modules is {target_modules!r}, but {config.slug} adapts no layer: leave it out"
        )
    if loram is not None:
        check_loram(loram, config.slug)
        if options.get("target_parameters"):
            raise InputError("--loram prunes layers alone: leave target_parameters out, or --loram")
    if budget is None and options.get(config.knob) is None:
        budget = DEFAULT_BUDGET
    with locked(directory) if is_first() else nullcontext():
        earlier = shared(lambda: earlier_run(directory, resume=resume, overwrite=overwrite))
        task = load_task(model, data, seed=seed, **task_options)
        every = max(1, round(steps / 10))
        job = Job(
            model=model,
            data=data,
            task=dict(sorted(task_options.items())),
            fingerprint=task.fingerprint,
            method=config.slug,
            budget=budget,
            options=options,
            target_modules=(target_modules or task.default_targets) if layers else None,
            steps=steps,
            batch_size=size,
            lr=lr or config.learning_rates[len(config.learning_rates) // 2],
            head_lr=head_lr or MIDDLE_RATES[HEAD_ONLY],
            seed=seed,
            save_every=save_every or every,
            validate_every=validate_every or every,
            optimizer=optimizer,
            optimizer_options=of_optimizer,
            loram=None if loram is None else asdict(loram),
            keep=keep,
            patience=patience,
        )
        if earlier is not None:
            check_same(
                directory,
                "run",
                _BEFORE | earlier,
                job.plain(),
                {"fingerprint": "model or data have changed"},
            )
        if earlier is not None and (directory / METRICS).is_file():
            metrics = read_earlier(directory / METRICS, "run", dict[str, Any])
        else:
            metrics = _run(job, task, directory, earlier is None, report_to, on_task, on_step)
    if push_to_hub is not None and is_first():
        upload(directory, push_to_hub, PUSHED, PUSH)
    return metrics


def _run(
    job: Job,
    task: Task,
    directory: Path,
    fresh: bool,
    report_to: Sequence[str],
    on_task: Callable[[dict[str, Any]], None] | None,
    on_step: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Adapt, train from the start (``fresh``) or the last checkpoint, and write what comes of it."""
    pruned = None if job.loram is None else PrunedBase(LoRAM(**job.loram), task, job, directory)
    adapted = _adapted(task, job)
    if on_task is not None and is_first():
        on_task(task.describe())
    if fresh:
        shared(lambda: _begin(job, directory))
    if pruned is not None and pruned.changes():
        del adapted
        pruned.change()
        adapted = _adapted(task, job)
    before = bits_before(task)
    history, told = train(
        adapted, task, job, directory / CHECKPOINTS, report_to, on_step if is_first() else None
    )
    kept = told["kept_step"]
    if pruned is not None:
        adapted, more = pruned.recover(adapted)
        told |= more
    metrics = _metrics(adapted, task, job, history, kept) | told
    metrics |= forgotten(task, before, adapted)
    shared(lambda: _finish(adapted, task, job, directory, metrics))
    return metrics


def _begin(job: Job, directory: Path) -> None:
    """Put what is about to be done in place of what an earlier run left."""
    remove_owned(directory, OWNED)
    with atomic_write(directory / RUN) as file:
        file.write_text(json.dumps(asdict(job), indent=2) + "\n", encoding="utf-8")
    write_config(directory / CONFIG, "adapt", adapt_options(job.plain()))


def _adapted(task: Task, job: Job) -> PeftModel:
    from eckart.adapters import adapt, get_config

    sizes = get_config(job.method).for_task(
        target_modules=job.target_modules or task.default_targets, max_length=task.max_length
    )
    return adapt(
        task.fresh_model(job.seed),
        job.method,
        budget=job.budget,
        modules_to_save=list(task.head_modules) or None,
        seed=job.seed,
        **{**sizes, **job.options},
    )


def _metrics(
    model: PeftModel, task: Task, job: Job, history: list[dict[str, Any]], kept: int
) -> dict[str, Any]:
    from eckart.adapters import saved_bytes, trainable_parameters
    from eckart.adapters._budget import count_parameters

    config = cast("AdapterConfig | PromptConfig", model.peft_config["default"])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapter = trainable_parameters(model)
    scored = validations(history)
    validation = next(found for found in scored if found["step"] == kept)
    size = scoring_batch(task, job.batch_size)
    return {
        "model": task.model_name,
        "data": task.data_name,
        "kind": task.kind,
        "labels": task.labels,
        "method": job.method,
        "budget": job.budget,
        "options": {**config.solved_options(), **job.options},
        "target_modules": job.target_modules,
        "trainable_parameters": adapter,
        "head_parameters": trained - adapter,
        "base_parameters": count_parameters(model) - (trained - adapter),
        "saved_bytes": saved_bytes(model),
        **{
            name: getattr(job, name) for name in ("steps", "batch_size", "lr", "head_lr", "seed", "optimizer")
        },
        "task": task.describe(),
        "metric": task.metric,
        "greater_is_better": task.greater_is_better,
        "validation": {name: value for name, value in validation.items() if name != "step"},
        "test": asdict(evaluate(model, task, task.test, size)),
        "losses": [[log["step"], log["loss"]] for log in history if "loss" in log],
        "validations": scored,
        "versions": versions(),
    }


def _finish(model: PeftModel, task: Task, job: Job, directory: Path, metrics: dict[str, Any]) -> None:
    """Put the adapter, its numbers and its card in place, then drop the checkpoints."""
    from eckart.adapters._export import save_adapter

    base: Any = model.get_base_model()
    if job.model is not None:
        model.peft_config["default"].base_model_name_or_path = base_name(job.model)
    with atomic_directory(directory, overwrite=True, last=_IN_THIS_ORDER) as folder:
        lora = save_adapter(model, folder)
        if task.kind != "own":
            base.config.save_pretrained(folder)
        if task.processor is not None:
            task.processor.save_pretrained(folder)
        (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        card = model_card(model, task, job.model, metrics, directory, written_as_lora=lora)
        card.save(folder / CARD)
    remove_owned(directory, [_SAVED, ALIGNED])
