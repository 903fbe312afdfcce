"""`eckart pretrain`: a language model from scratch."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Annotated

import typer

from eckart.arguments import check_least, check_positive
from eckart.cli.command import Answer
from eckart.cli.console import progress, table
from eckart.cli.options import (
    METHOD,
    MODEL_AND_DATA,
    OUTPUT,
    TRAINING,
    OptimizerOption,
    Overwrite,
    flag,
    option,
)
from eckart.cli.words import options
from eckart.tasks.optimizers import OPTIMIZERS


def pretrain(
    output: Annotated[Path, option("DIR", "Directory to write.", OUTPUT)],
    arch: Annotated[
        str, option("ARCH", "llama-2m, -6m, -60m … -7b, or the path of a config.json.", METHOD)
    ] = "llama-2m",
    data: Annotated[
        str,
        option(
            "DATA",
            "Directory or file of text, Parquet or JSON lines; Python's own source when left out.",
            MODEL_AND_DATA,
        ),
    ] = "stdlib",
    method: Annotated[
        str, option("NAME", "full, sltrain, lost, low-rank, maestro or relora.", METHOD)
    ] = "full",
    option_: Annotated[
        list[str] | None,
        option(
            "NAME=VALUE",
            "An option of the method, such as r=32, sparsity=0.03 or restart_every=500; may be repeated.",
            METHOD,
            "--option",
        ),
    ] = None,
    column: Annotated[str, option("NAME", "Column of the text, or of token ids.", MODEL_AND_DATA)] = "text",
    tokenizer: Annotated[
        str | None, option("DIR", "Directory of a tokenizer; one is learned when left out.", MODEL_AND_DATA)
    ] = None,
    vocabulary: Annotated[int, option("N", "Tokens of a tokenizer that is learned.", MODEL_AND_DATA)] = 4096,
    length: Annotated[int, option("N", "Tokens of a sequence.", MODEL_AND_DATA)] = 256,
    steps: Annotated[int, option("N", "Updates.", TRAINING)] = 1000,
    batch: Annotated[int, option("N", "Sequences of one pass of one process.", TRAINING)] = 8,
    accumulate: Annotated[int, option("N", "Passes of an update.", TRAINING)] = 1,
    optimizer: Annotated[
        str,
        option(
            "NAME",
            f"{', '.join(OPTIMIZERS)}, spectron, or a name of transformers' optim.",
            TRAINING,
        ),
    ] = "adamw",
    optimizer_option: OptimizerOption = None,
    lr: Annotated[float, option("RATE", "Largest learning rate.", TRAINING)] = 3e-3,
    weight_decay: Annotated[float, option("X", "Of matrices.", TRAINING)] = 0.0,
    clip: Annotated[float, option("X", "Largest norm of the gradient; 0 for none.", TRAINING)] = 1.0,
    per_layer: Annotated[
        bool,
        flag("--per-layer", help="Step inside the backward pass and free each gradient.", panel=TRAINING),
    ] = False,
    bf16: Annotated[bool, flag("--bf16", help="Mixed precision.", panel=TRAINING)] = False,
    fsdp: Annotated[
        bool,
        flag("--fsdp", help="Share weights among the processes of torchrun; no checkpoints.", panel=TRAINING),
    ] = False,
    dense: Annotated[
        bool, flag("--dense", help="Write the trained model with ordinary linear layers.", panel=OUTPUT)
    ] = False,
    cut: Annotated[
        list[float] | None,
        option("RATIO", "Also write maestro's network with this share removed; may be repeated.", OUTPUT),
    ] = None,
    eval_steps: Annotated[int, option("N", "Evaluate every so many updates.", TRAINING)] = 250,
    save_steps: Annotated[int, option("N", "Write a checkpoint every so many updates.", OUTPUT)] = 250,
    seed: Annotated[int, option("N", "Of the model, the supports and the order of the text.", TRAINING)] = 0,
    resume: Annotated[
        bool, flag("--resume", help="Go on from the last whole checkpoint in --output.", panel=OUTPUT)
    ] = False,
    overwrite: Overwrite = False,
) -> Answer:
    """Train a language model from scratch, full or structured, and say what it took of time and memory.

    Under `torchrun` each process takes its share of every batch.

    Example: `eckart pretrain --method sltrain --option r=32 --steps 2000 --output run`
    """
    given, of_optimizer = options(option_), options(optimizer_option)
    check_least(
        1, steps=steps, batch=batch, accumulate=accumulate, eval_steps=eval_steps, save_steps=save_steps
    )
    check_positive(lr=lr)

    from eckart.jobs.pretrain.pretraining import pretrain as run

    with progress("pretraining") as on_step:
        report = run(
            arch,
            output=output,
            data=data,
            method=method,
            column=column,
            tokenizer=tokenizer,
            vocabulary=vocabulary,
            length=length,
            steps=steps,
            batch=batch,
            accumulate=accumulate,
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            clip=clip,
            per_layer=per_layer,
            bf16=bf16,
            fsdp=fsdp,
            dense=dense,
            cuts=cut or (),
            eval_steps=eval_steps,
            save_steps=save_steps,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            options=given,
            optimizer_options=of_optimizer,
            on_step=on_step,
        )
    if os.environ.get("RANK", "0") != "0":
        raise typer.Exit()  # one process of several tells
    rows = table("memory", "predicted MB", "measured MB")
    for kind, size in report.predicted.items():
        rows.add_row(kind, f"{size / 1e6:,.1f}", f"{report.measured[kind] / 1e6:,.1f}")
    sizes = "".join(
        f" Cut by {ratio}: {found['parameters']:,.0f} parameters, perplexity {math.exp(found['loss']):.2f}."
        for ratio, found in report.cuts.items()
    )
    told = (
        f"{report.method}, {report.parameters:,} parameters, {report.steps:,} steps, {report.tokens:,} tokens at "
        f"{report.tokens_per_second:,.0f} a second. Held out: perplexity {report.perplexity:.2f}, "
        f"{report.bits_per_byte:.3f} bits a byte.{sizes} Written: {output}"
    )
    return Answer(dataclasses.asdict(report), (rows, told) if report.predicted else (told,))
