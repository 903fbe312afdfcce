"""Train a causal language model from scratch on a corpus of any size, full or structured, and say what it took."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eckart.arguments import check_seed, plain
from eckart.errors import InputError
from eckart.files import atomic_directory, atomic_write, check_output, disk_is_full
from eckart.jobs.repeat import CONFIG, pretrain_options, write_config
from eckart.processes import is_first, world

LOG, METRICS, MODEL = "log.csv", "metrics.json", "model"


@dataclass(frozen=True)
class Pretrained:
    """What `pretrain` did.

    Attributes:
        method, arch, optimizer: as they were given.
        parameters, trained: numbers of the model that is written, and of those the trained ones.
        steps, tokens: made, and seen.
        tokens_per_second: of all processes, without evaluation and saving.
        loss, perplexity, bits_per_byte: on the test split, which training never looks at, in nats and bits.
        predicted, measured: bytes of memory by kind; empty where the model was sharded.
        cuts: numbers and loss of the network at each size that was asked for.
    """

    method: str
    arch: str
    optimizer: str
    parameters: int
    trained: int
    steps: int
    tokens: int
    tokens_per_second: float
    loss: float
    perplexity: float
    bits_per_byte: float
    predicted: dict[str, int]
    measured: dict[str, int]
    cuts: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)


def pretrain(
    arch: str = "llama-2m",
    *,
    output: str | os.PathLike[str],
    data: str = "stdlib",
    method: str = "full",
    column: str = "text",
    tokenizer: str | os.PathLike[str] | None = None,
    vocabulary: int = 4096,
    length: int = 256,
    steps: int = 1000,
    batch: int = 8,
    accumulate: int = 1,
    optimizer: str = "adamw",
    lr: float = 3e-3,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    per_layer: bool = False,
    bf16: bool = False,
    fsdp: bool = False,
    dense: bool = False,
    cuts: Sequence[float] = (),
    eval_steps: int = 250,
    save_steps: int = 250,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    options: Mapping[str, Any] | None = None,
    optimizer_options: Mapping[str, Any] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Pretrained:
    """Pretrain, evaluate, and write model, tokenizer, log and metrics; under torchrun each process takes its share.

    The corpus is read as a stream and encoded once to ``tokens/``; training reads sequences from there.
    ``checkpoints/`` holds the last two states of the Trainer; a run that is resumed gives the same numbers to the bit.

    Args:
        arch: ``"llama-2m"`` … ``"llama-7b"``, or the path of a config.json.
        output: the directory to make.
        data: a directory of text, Parquet or JSON lines, one such file, or ``"stdlib"``.
        method: ``"full"``, or a structured layer: ``"sltrain"``, ``"lost"``, ``"low-rank"``, ``"maestro"``,
            ``"relora"``.
        column: of the text in Parquet and JSON lines.
        tokenizer: a directory of one; None learns a byte-level BPE from the training documents.
        vocabulary: of a tokenizer that is learned.
        length: tokens of a sequence.
        steps: updates.
        batch: sequences of one pass of one process.
        accumulate: passes of an update.
        optimizer: a key of `eckart.tasks.optimizers.OPTIMIZERS`, ``"spectron"`` (with ``method="low-rank"``), or a name
            that transformers' ``optim`` has.
        lr: largest rate, after a linear warm-up over a tenth of the steps; then a cosine to a tenth of it.
        weight_decay: of matrices.
        clip: largest norm of the gradient; 0 for none.
        per_layer: step inside the backward pass and free each gradient: one pass an update, no clipping, one process.
        bf16: mixed precision.
        fsdp: of several processes each holds a share of weights, gradients and optimiser state (FSDP2), not a copy;
            without checkpoints and without figures of memory.
        dense: write the trained model with ordinary linear layers.
        cuts: shares to remove of Maestro's layers; each network so cut is written to ``model-<share>``.
        eval_steps, save_steps: every so many updates.
        seed: of the model, the supports and the order of the sequences.
        resume: go on from the last whole checkpoint.
        overwrite: replace what is in the directory.
        options: of the structured layers, such as ``r`` and ``sparsity``; with Maestro
            and ReLoRA those of `OrderedDropout` and `ReLoRA` too.
        optimizer_options: of the optimiser, such as ``rank``.
        on_step: called with (done, total).

    Raises:
        InputError: an argument out of its range, a corpus that cannot be used, another method or tokenizer than the run
            that is resumed, a full disk. What was whole before stays whole.
    """
    given = {k: v for k, v in locals().items() if k not in ("output", "resume", "overwrite", "on_step")}
    given |= {"options": dict(options or {}), "optimizer_options": dict(optimizer_options or {})}
    given["cuts"] = list(cuts)
    given["tokenizer"] = None if tokenizer is None else str(tokenizer)
    directory = Path(output)
    _check(given, resume)
    if not resume and is_first():
        check_output(directory, overwrite=overwrite)
    try:
        return _run(given, directory, resume, on_step)
    except Exception as error:
        if disk_is_full(error, directory):
            raise InputError(
                f"--output {directory}: the disk is full; free some space and run again with --resume"
            ) from error
        raise


def _check(given: Mapping[str, Any], resume: bool) -> None:
    for name in ("length", "steps", "batch", "accumulate", "eval_steps", "save_steps", "vocabulary"):
        least = 2 if name == "length" else 1
        if isinstance(given[name], bool) or not isinstance(given[name], int) or given[name] < least:
            raise InputError(f"--{name.replace('_', '-')} {given[name]}: give a whole number from {least} up")
    for name in ("lr", "weight_decay", "clip"):
        value = plain(given[name])
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf or (name == "lr" and value == 0):
            raise InputError(f"--{name.replace('_', '-')} {value}: give a positive number")
    check_seed(given["seed"])
    if given["per_layer"] and given["accumulate"] > 1:
        raise InputError(
            f"--per-layer with --accumulate {given['accumulate']}: gradients that are freed cannot be accumulated"
        )
    if given["per_layer"] and given["clip"] > 0:
        raise InputError(
            f"--per-layer with --clip {given['clip']:g}: the norm of all gradients is never known; pass --clip 0"
        )
    if given["fsdp"] and resume:
        raise InputError("--fsdp with --resume: a sharded run keeps no checkpoints; start it again")
    if given["fsdp"] and given["optimizer"] in ("galore-torch", "apollo", "muon", "spectron"):
        raise InputError(
            f"--fsdp with --optimizer {given['optimizer']}: it needs whole matrices; choose adamw, dct-adamw, trion or "
            "galore, or leave --fsdp out"
        )
    if given["per_layer"] and given["method"] == "relora":
        raise InputError(
            "--per-layer with --method relora: its rates are set before a step, too late inside the backward pass"
        )
    if given["per_layer"] and world() > 1:
        raise InputError(
            "--per-layer in several processes: a step would come before the gradients are averaged"
        )


def _run(
    given: dict[str, Any],
    directory: Path,
    resume: bool,
    on_step: Callable[[int, int], None] | None,
) -> Pretrained:
    from eckart.jobs.pretrain.architectures import check_arch, config_of
    from eckart.jobs.pretrain.preparation import ABOUT, RUNS, begin, check_same, prepare
    from eckart.jobs.pretrain.regimes import check_cuts, finish, regime_of, write_cuts
    from eckart.jobs.pretrain.sharding import check_trainer, gathered, shard
    from eckart.jobs.pretrain.training import (
        build,
        check_causal,
        check_optimizer,
        last_whole,
        optimizer_of,
        rehearse,
        trainer_of,
    )
    from eckart.tasks.optimizers import check_resumable

    check_optimizer(given["optimizer"])
    check_arch(given["arch"])
    check_cuts(given["method"], given["cuts"])
    regime, of_layers = regime_of(given["method"], given["options"], given["seed"])
    if regime is not None and given["fsdp"]:
        raise InputError(
            f"--fsdp with --method {given['method']}: its factors change as wholes; leave it out"
        )
    if regime is not None:
        regime.check_length(given["steps"])
    names = ("optimizer", "lr", "weight_decay", "per_layer", "optimizer_options")
    of_optimizer = [given[name] for name in names]
    first = config_of(given["arch"], 1, given["length"], 0)
    rehearse(first, given["method"], of_layers, of_optimizer)
    check_causal(first, given["arch"], given["length"])
    if resume:
        check_resumable(given["optimizer"])
        check_same(given, directory)
    elif is_first() and not (directory / ABOUT).is_file():
        begin(given, directory)
    prepared = prepare(given, directory, fresh=not resume)
    ids = prepared.tokenizer
    config = config_of(given["arch"], len(ids), given["length"], ids.eos_token_id)
    make = partial(build, config, given["method"], given["seed"], of_layers)
    model = make()
    if given["fsdp"]:
        shard(model)
    optimizer = optimizer_of(model, *of_optimizer)
    trainer = trainer_of(given, directory / RUNS, model, optimizer, prepared.splits, on_step, regime)
    if given["fsdp"]:
        check_trainer(trainer)
    start = last_whole(directory / RUNS, given["steps"]) if resume else None
    trainer.train(resume_from_checkpoint=None if start is None else str(start))
    report = _report(given, trainer, prepared)
    trained: Any = trainer.model
    whole = gathered(model, make) if given["fsdp"] else trained
    if whole is not None:
        finish(given["method"], whole)
        sizes = [(p.numel(), p.requires_grad) for p in whole.parameters()]
        report = dataclasses.replace(
            report,
            parameters=sum(n for n, _ in sizes),
            trained=sum(n for n, trains in sizes if trains),
            cuts=write_cuts(trainer, prepared, given["cuts"], directory),
        )
        if trainer.is_world_process_zero():
            _write(given, directory, whole, trainer.state.log_history, prepared.tokenizer, report)
    trainer.accelerator.wait_for_everyone()
    return report


def _report(given: Mapping[str, Any], trainer: Any, prepared: Any) -> Pretrained:
    from eckart.jobs.pretrain.corpus import bits_per_byte

    model = trainer.model
    loss = float(trainer.evaluate(prepared.splits["test"], metric_key_prefix="test")["test_loss"])
    held = {"predicted": {}, "measured": {}} if given["fsdp"] else _memory(given, trainer, prepared)
    numbers = [p.numel() for p in model.parameters()]
    steps = trainer.state.global_step
    return Pretrained(
        method=given["method"],
        arch=given["arch"],
        optimizer=given["optimizer"],
        parameters=sum(numbers),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        steps=steps,
        tokens=steps * given["batch"] * given["accumulate"] * given["length"] * world(),
        tokens_per_second=trainer.pace.tokens_per_second,
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=bits_per_byte(loss, prepared.stored["test"]),
        predicted=held["predicted"],
        measured=held["measured"],
    )


def _memory(given: Mapping[str, Any], trainer: Any, prepared: Any) -> dict[str, dict[str, int]]:
    from eckart.jobs.pretrain.memory import measured, predicted
    from eckart.jobs.pretrain.training import inner_optimizer

    model, optimizer = trainer.model, inner_optimizer(trainer)
    batch = trainer.data_collator([prepared.splits["train"][0]] * given["batch"])["input_ids"]
    shared = {"per_layer": given["per_layer"], "autocast": trainer.mixed}
    sizes = {"batch": given["batch"], "length": given["length"]}
    return {
        "predicted": predicted(model, optimizer, **sizes, **shared).to_dict(),
        "measured": measured(model, optimizer, batch.to(model.device), **shared).to_dict(),
    }


def _write(
    given: Mapping[str, Any],
    directory: Path,
    model: Any,
    history: list[dict[str, Any]],
    tokenizer: Any,
    report: Pretrained,
) -> None:
    """Model and tokenizer, the log as CSV, the report, and a config.yaml that repeats the run."""
    from eckart.layers import to_dense

    model = to_dense(model) if given["dense"] else model
    with atomic_directory(directory / MODEL, overwrite=True) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    rows = [row for row in history if "loss" in row or "eval_loss" in row]
    columns = ("step", "loss", "eval_loss", "learning_rate", "grad_norm")
    with atomic_write(directory / LOG) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    with atomic_write(directory / METRICS) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(report), indent=1) + "\n")
    write_config(directory / CONFIG, "pretrain", pretrain_options(given))
