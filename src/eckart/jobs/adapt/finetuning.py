"""Fine-tune one method: checkpoints that survive a kill, and in the end a directory that PEFT loads."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import TrainerCallback

from eckart.adapter_files import PREPROCESSING
from eckart.arguments import check_least, check_positive, check_seed, plain
from eckart.errors import InputError
from eckart.extras import require
from eckart.files import atomic_directory, atomic_write, locked, remove_owned
from eckart.jobs.adapt.card import model_card
from eckart.jobs.adapt.checkpoints import KeepWhole, last_whole
from eckart.jobs.adapt.checks import CARD, CHECKPOINTS, METRICS, RUN, earlier_run, refuse_taken
from eckart.jobs.adapt.job import Job
from eckart.jobs.adapt.loram import ALIGNED, PRUNING, PrunedBase
from eckart.jobs.adapt.loram_options import LoRAM, check_loram
from eckart.jobs.compare.contenders import HEAD_ONLY, MIDDLE_RATES
from eckart.jobs.earlier import check_same, read_earlier
from eckart.jobs.repeat import CONFIG, adapt_options, write_config
from eckart.tasks.environment import versions
from eckart.tasks.optimizers import check_optimizer, check_resumable
from eckart.tasks.options import TaskOptions, memory_of
from eckart.tasks.pretrained import base_name
from eckart.tasks.scoring import evaluate
from eckart.tasks.trainer import Recipe, make_trainer

if TYPE_CHECKING:
    from peft import PeftModel

    from eckart.adapters import AdapterConfig, PromptConfig
    from eckart.tasks.task import Task

DEFAULT_BUDGET = "0.5%"
_BEFORE = {"optimizer": "adamw", "optimizer_options": {}}
"""What a run had before it could be chosen."""
_IN_THIS_ORDER = ("adapter_model.safetensors", "adapter_config.json", CARD, METRICS)
_SAVED = f"{CHECKPOINTS}/checkpoint-*/**/*"
OWNED = (*_IN_THIS_ORDER, ALIGNED, PRUNING, RUN, CONFIG, "config.json", _SAVED, *PREPROCESSING)
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
    batch_size: int = 16,
    lr: float | None = None,
    head_lr: float | None = None,
    optimizer: str = "adamw",
    optimizer_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    save_every: int | None = None,
    validate_every: int | None = None,
    loram: LoRAM | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_task: Callable[[dict[str, Any]], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    **task_options: Any,
) -> dict[str, Any]:
    """Train the adapters of one method (and the task's head) and write them with their numbers and a model card.

    While it runs, ``output`` holds ``run.json`` and ``checkpoints/``; a killed run goes on with ``resume`` and ends
    with the numbers it would have had. The adapter, metrics.json and README.md appear together at the end, and the
    checkpoints go.

    Args:
        model: model directory or hub name; None for a built-in one: MiniLM, for language modelling the code model.
        data: file, directory or hub name; None for Python's own docstrings.
        method: slug or alias, see `eckart.methods`.
        output: the directory to write.
        budget: as in `eckart.adapt`; "0.5%" when neither it nor the method's own knob is given.
        options: further fields of the method's config.
        target_modules: layers to adapt; the task's own choice when None.
        steps: optimiser steps.
        batch_size: examples a step.
        lr: learning rate of the adapters; the middle one that the method suggests when None.
        head_lr: learning rate of the head.
        optimizer: a key of `eckart.tasks.optimizers.OPTIMIZERS`; the head, and what is no matrix, get AdamW from those
            that are for matrices.
        optimizer_options: of the optimiser, such as ``rank``.
        seed: of the data order, the head, the adapters and dropout.
        save_every: steps between checkpoints; a tenth of all when None.
        validate_every: steps between scores on the validation split; a tenth of all when None.
        loram: train on a pruned base, and write the adapter of the whole one.
        resume: continue the run that ``output`` holds; a finished one is returned as it is.
        overwrite: replace what an earlier run left in ``output``.
        on_task: called with `Task.describe`, what was understood of model and data, before anything is trained.
        on_step: called after every step with how many are done and how many there are.
        task_options: passed to `load_task`, such as ``kind``, ``text_column``, ``max_length``, ``limits``.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: anything wrong with what was given; ``output`` is as it was.
        FloatingPointError: the loss became NaN or infinite.
    """
    from eckart.adapters import AdapterConfig, get_config
    from eckart.tasks.task import load_task

    require("scipy", extra="compare")  # for the intervals of the scores
    directory, inputs = Path(output), {"--model": model, "--data": data}
    earlier_run(directory, resume=resume, overwrite=overwrite, inputs=inputs)
    check_least(1, steps=steps, batch_size=batch_size, save_every=save_every, validate_every=validate_every)
    check_positive(lr=lr, head_lr=head_lr)
    seed = check_seed(seed)
    steps, batch_size, save_every, validate_every = map(
        plain, (steps, batch_size, save_every, validate_every)
    )
    lr, head_lr = plain(lr), plain(head_lr)
    options, of_optimizer = (
        {k: plain(v) for k, v in (o or {}).items()} for o in (options, optimizer_options)
    )
    check_optimizer(optimizer)
    memory_of(cast(TaskOptions, task_options)).part(batch_size)
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
    with locked(directory):
        earlier = earlier_run(directory, resume=resume, overwrite=overwrite)
        task = load_task(model, data, seed=seed, **task_options)
        every = max(1, round(steps / 10))
        job = Job(
            model=model,
            data=data,
            task=task_options,
            fingerprint=task.fingerprint,
            method=config.slug,
            budget=budget,
            options=options,
            target_modules=(target_modules or task.default_targets) if layers else None,
            steps=steps,
            batch_size=batch_size,
            lr=lr or config.learning_rates[len(config.learning_rates) // 2],
            head_lr=head_lr or MIDDLE_RATES[HEAD_ONLY],
            seed=seed,
            save_every=save_every or every,
            validate_every=validate_every or every,
            optimizer=optimizer,
            optimizer_options=of_optimizer,
            loram=None if loram is None else asdict(loram),
        )
        if earlier is not None:
            check_same(
                directory,
                "run",
                _BEFORE | earlier,
                job.plain(),
                {"fingerprint": "model or data have changed"},
            )
            if (directory / METRICS).is_file():
                return read_earlier(directory / METRICS, "run", dict[str, Any])
        return _run(job, task, directory, fresh=earlier is None, on_task=on_task, on_step=on_step)


def _run(
    job: Job,
    task: Task,
    directory: Path,
    *,
    fresh: bool,
    on_task: Callable[[dict[str, Any]], None] | None,
    on_step: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Adapt, train from the start (``fresh``) or the last checkpoint, and write what comes of it."""
    pruned = None if job.loram is None else PrunedBase(LoRAM(**job.loram), task, job, directory)
    adapted = _adapted(task, job)
    if on_task is not None:
        on_task(task.describe())
    if fresh:
        remove_owned(directory, OWNED)
        with atomic_write(directory / RUN) as file:
            file.write_text(json.dumps(asdict(job), indent=2) + "\n", encoding="utf-8")
        write_config(directory / CONFIG, "adapt", adapt_options(job.plain()))
    if pruned is not None and pruned.changes():
        del adapted
        pruned.change()
        adapted = _adapted(task, job)
    history, begun, seconds = _train(adapted, task, job, directory / CHECKPOINTS, on_step)
    told: dict[str, Any] = {"seconds": round(seconds, 1), "resumed_at_step": begun}
    if pruned is not None:
        adapted, more = pruned.recover(adapted)
        told |= more
    metrics = _metrics(adapted, task, job, history) | told
    _finish(adapted, task, job, directory, metrics)
    return metrics


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


class _Follow(TrainerCallback):
    """Scores the validation split as the run goes on and stops a run whose loss is lost."""

    def __init__(self, task: Task, job: Job, on_step: Callable[[int, int], None] | None) -> None:
        self.task, self.job, self.on_step = task, job, on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        if step % self.job.validate_every == 0 or step == self.job.steps:
            evaluation = evaluate(kwargs["model"], self.task, self.task.validation, 2 * self.job.batch_size)
            state.log_history.append({"step": step, "validation": asdict(evaluation)})
        if self.on_step is not None:
            self.on_step(step, self.job.steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not math.isfinite(loss := float((logs or {}).get("loss", 0.0))):
            raise FloatingPointError(
                f"the loss is {loss} at step {state.global_step}: lower --lr or check the data"
            )


def _train(
    model: PeftModel,
    task: Task,
    job: Job,
    checkpoints: Path,
    on_step: Callable[[int, int], None] | None,
) -> tuple[list[dict[str, Any]], int, float]:
    """Train to the end. Returns the log, the step it was taken up at and the seconds since then."""
    trainer = make_trainer(
        model,
        task,
        Recipe(
            job.steps, job.batch_size, job.lr, job.head_lr, job.seed, job.optimizer, job.optimizer_options
        ),
        callbacks=[_Follow(task, job, on_step), KeepWhole()],
        output_dir=str(checkpoints),
        save_strategy="steps",
        save_steps=job.save_every,
        save_total_limit=2,
    )
    last = last_whole(checkpoints)
    start = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    except RuntimeError as error:  # all that torch.save says of a full disk
        if "iostream error" in str(error) and shutil.disk_usage(checkpoints).free < 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(checkpoints)) from error
        raise
    begun = 0 if last is None else int(last.name.rpartition("-")[2])
    return trainer.state.log_history, begun, time.monotonic() - start


def _metrics(model: PeftModel, task: Task, job: Job, history: list[dict[str, Any]]) -> dict[str, Any]:
    from eckart.adapters import saved_bytes, trainable_parameters
    from eckart.adapters._budget import count_parameters

    config = cast("AdapterConfig | PromptConfig", model.peft_config["default"])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapter = trainable_parameters(model)
    validations = [{"step": log["step"], **log["validation"]} for log in history if "validation" in log]
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
        "validation": {name: value for name, value in validations[-1].items() if name != "step"},
        "test": asdict(evaluate(model, task, task.test, 2 * job.batch_size)),
        "losses": [[log["step"], log["loss"]] for log in history if "loss" in log],
        "validations": validations,
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
