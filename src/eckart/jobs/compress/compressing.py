"""Compress a model on its data: finished blocks survive a kill, and in the end a directory that transformers loads."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.arguments import check_least, check_positive
from eckart.catalog import find_adapter
from eckart.compression._asked import check_size, find_compressor
from eckart.errors import InputError
from eckart.files import check_output
from eckart.tasks.asked import check_asked
from eckart.tasks.smaller import (
    CALIBRATION,
    HEAL_LR,
    calibration_batches,
    note_calibration,
    train_factors,
)

if TYPE_CHECKING:
    from eckart.compression import Report
    from eckart.tasks.task import Task

METRICS = "metrics.json"
FACTORS = "factors"
"""What healing trains unless it is told an adapter: the compressed layers themselves, and the norms."""
OnStep = Callable[[int, int], None]


def compress_model(
    model: str | None = None,
    data: str | None = None,
    method: str = "lord",
    *,
    output: str | Path,
    ratio: float | None = None,
    budget: str | None = None,
    options: Mapping[str, Any] | None = None,
    calibration: int = CALIBRATION,
    sequential: bool = False,
    heal: int = 0,
    heal_method: str = FACTORS,
    heal_lr: float | None = None,
    batch_size: int = 8,
    seed: int = 0,
    merge: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    on_task: Callable[[dict[str, Any]], None] | None = None,
    on_block: OnStep | None = None,
    on_step: OnStep | None = None,
    **task_options: Any,
) -> dict[str, Any]:
    """Compress a model with one method, heal it if asked, and write it with its table of layers and a card.

    While it runs, finished blocks lie in ``<output>.partial``; ``output`` appears whole at the end.

    Args:
        model: model directory or hub name; None for a built-in one: MiniLM, for language modelling the code model.
        data: file, directory or hub name, for calibration, healing and scores; None for Python's own docstrings.
        method: slug, see `eckart.methods`.
        output: the directory to write.
        ratio: share of the parameters of the linear layers (convolutions for "trp") to remove.
        budget: instead, the size of the whole model: "70%", "95M", "180MB".
        options: of the method.
        calibration: training examples (for text, blocks of ``max_length`` tokens) that the statistics see.
        sequential: statistics of a block from the compressed blocks before it.
        heal: training steps afterwards.
        heal_method: "factors" trains the compressed layers and the norms; the slug of an adapter trains that on all
            linear layers and merges it.
        heal_lr: learning rate of healing; 1e-4 for the factors, the adapter's own middle rate.
        batch_size: examples a step, in calibration too.
        seed: of the data order, the head, and the adapters.
        merge: write an ordinary dense model instead, for tools that do not know eckart.
        resume: go on with the finished blocks of the same command.
        overwrite: replace what is in ``output`` and in ``<output>.partial``.
        on_task: called with `Task.describe`, what was understood of model and data, before anything is compressed.
        on_block: called with the number of finished blocks and of all.
        on_step: likewise for the steps of healing.
        task_options: passed to `load_task`, such as ``kind``, ``text_column``, ``max_length``, ``limits``.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: anything wrong with what was given; ``output`` is as it was.
        FloatingPointError: the loss of healing became NaN or infinite.
    """
    directory = Path(output)
    check_output(directory, overwrite=overwrite, inputs={"--model": model, "--data": data})
    partial = directory.with_name(f"{directory.name}.partial")
    _check_partial(partial, resume=resume, overwrite=overwrite)
    check_least(1, calibration=calibration, batch_size=batch_size)
    find_compressor(method)
    check_size(ratio, budget)
    check_healing(heal, heal_method, heal_lr)
    check_asked(model, data, batch_size, task_options)  # type: ignore[arg-type]

    from eckart.compression import compress, report, save
    from eckart.compression import merge as make_dense
    from eckart.compression._compress import asked, suited
    from eckart.compression._saving import check_mergeable
    from eckart.tasks.scoring import evaluate, scoring_batch
    from eckart.tasks.task import load_task

    chosen = asked(method, ratio, budget, options or {})
    task = load_task(model, data, seed=seed, **task_options)
    if chosen.calibrated or chosen.steps:
        note_calibration(task, calibration)
    given = dict(options or {})
    own = given.pop("exclude", ())
    how = {**given, "exclude": (*task.head_modules, *([own] if isinstance(own, str) else own))}
    small = task.fresh_model(seed)
    _, outline, _ = suited(small, method, ratio, budget, how)
    if merge:
        check_mergeable(chosen, outline)
    if on_task is not None:
        on_task(task.describe())
    size = scoring_batch(task, batch_size)
    scores = {"dense": asdict(evaluate(small, task, task.test, size))}
    if not resume:
        shutil.rmtree(partial, ignore_errors=True)
    begun = time.monotonic()
    compress(
        small,
        method,
        ratio=ratio,
        budget=budget,
        calibration=calibration_batches(task, calibration, batch_size),
        sequential=sequential,
        resume=partial,
        progress=on_block,
        **how,
    )
    seconds = time.monotonic() - begun
    found = report(small)
    assert found is not None
    scores["compressed"] = asdict(evaluate(small, task, task.test, size))
    if heal:
        small = _heal(small, task, found, heal, heal_method, heal_lr, batch_size, seed, on_step)
        scores["healed"] = asdict(evaluate(small, task, task.test, size))
        if not math.isfinite(scores["healed"]["score"]):
            raise FloatingPointError("the healed model answers NaN on the test split: lower --heal-lr")
    if merge:
        make_dense(small)
    metrics = _metrics(task, found, scores, seconds, heal, heal_method if heal else None)
    small.eckart_report = found
    files = {METRICS: json.dumps(metrics, indent=2) + "\n"}
    save(small, directory, overwrite=overwrite, tokenizer=task.processor, about=_about(metrics), files=files)
    shutil.rmtree(partial, ignore_errors=True)
    return metrics


def check_healing(steps: int, method: str, lr: float | None) -> None:
    """Refuse bad numbers, an adapter that is not known, and how to heal where nothing is healed.

    Raises:
        InputError: naming it.
    """
    check_least(0, heal=steps)
    check_positive(heal_lr=lr)
    if method != FACTORS:
        find_adapter(method)
    if not steps and (method != FACTORS or lr is not None):
        named = f"heal_lr is {lr}" if lr is not None else f"heal_method is {method!r}"
        raise InputError(f"{named} and heal is 0: nothing is healed: give heal, the steps, or leave it out")


def _check_partial(partial: Path, *, resume: bool, overwrite: bool) -> None:
    if resume and not partial.is_dir():
        raise InputError(f"--resume: {partial} holds no finished blocks to go on with: leave --resume out")
    if partial.is_dir() and not resume and not overwrite:
        raise InputError(
            f"{partial} holds the finished blocks of a run: go on with --resume, or begin again with --overwrite"
        )


def _heal(
    model: Any,
    task: Task,
    found: Report,
    steps: int,
    method: str,
    lr: float | None,
    batch_size: int,
    seed: int,
    on_step: OnStep | None,
) -> Any:
    """Train a compressed model as `eckart adapt` trains: its factors, or an adapter that is merged in the end."""
    import torch

    from eckart.tasks.trainer import Recipe, train_run

    trained = model
    if method == FACTORS:
        train_factors(model, [row.layer for row in found.rows if row.rank is not None], task)
    else:
        from eckart.adapters import adapt, get_config

        config = get_config(method)
        lr = lr or config.learning_rates[len(config.learning_rates) // 2]
        heads = list(task.head_modules) or None
        trained = adapt(model, config.slug, target_modules="all-linear", modules_to_save=heads, seed=seed)
    recipe = Recipe(steps, batch_size, lr or HEAL_LR, lr or HEAL_LR, seed)
    training = train_run(trained, task, recipe, on_step=lambda step: on_step and on_step(step, steps))
    if training.status == "diverged":
        raise FloatingPointError(f"the loss of healing was lost at step {training.steps}: lower --heal-lr")
    healed = trained if method == FACTORS else trained.merge_and_unload()
    return healed.requires_grad_(True).to(torch.float32).cpu().eval()


def _metrics(
    task: Task, found: Report, scores: dict[str, Any], seconds: float, heal: int, heal_method: str | None
) -> dict[str, Any]:
    return {
        "model": task.model_name,
        "data": task.data_name,
        "kind": task.kind,
        "method": found.method,
        "options": found.options,
        "ratio": found.ratio,
        "removed": found.removed,
        "parameters_before": found.parameters_before,
        "parameters_after": found.parameters_after,
        "layers": len(found.rows),
        "layers_changed": sum(row.rank is not None for row in found.rows),
        "calibration_tokens": found.tokens,
        "seconds": round(seconds, 1),
        "heal": heal,
        "heal_method": heal_method,
        "metric": task.metric,
        "greater_is_better": task.greater_is_better,
        "test": scores,
    }


def _about(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Rows of the card: where the model comes from, and its scores."""
    name = metrics["metric"].replace("_", " ")
    rows = {"base model": metrics["model"], "data": metrics["data"]}
    if metrics["heal"]:
        rows["healed"] = f"{metrics['heal']:,} steps of {metrics['heal_method']}"
    for state, score in metrics["test"].items():
        interval = f"{score['ci_low']:.4f} to {score['ci_high']:.4f}"
        rows[f"{name} on test, {state}"] = f"{score['score']:.4f} ({interval})"
        for word, value in score["also"].items():
            rows[f"{word.replace('_', ' ')} on test, {state}"] = f"{value:.4f}"
    return rows
