"""`eckart pretrain`: reads its options and calls `eckart.jobs.pretrain.pretraining.pretrain`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.console import progress, show, show_json, table
from eckart.cli.options import Config, Debug, Json, Overwrite
from eckart.cli.options import options as parse_options

Options = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="An option of the structured layers, such as r=32 or sparsity=0.03; may be repeated.",
    ),
]
OptimizerOptions = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="An option of our optimizers, such as rank=64; may be repeated."),
]


def pretrain(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Directory to write.")],
    arch: Annotated[
        str, typer.Option(metavar="ARCH", help="llama-2m, -6m, -60m … -7b, or the path of a config.json.")
    ] = "llama-2m",
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="Directory or file of text, Parquet or JSON lines; Python's own source when left out.",
        ),
    ] = "stdlib",
    method: Annotated[str, typer.Option(help="full, sltrain, lost or low-rank.")] = "full",
    option: Options = None,
    column: Annotated[str, typer.Option(help="Column of the text, or of token ids.")] = "text",
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Directory of a tokenizer; one is learned when left out."),
    ] = None,
    vocabulary: Annotated[int, typer.Option(help="Tokens of a tokenizer that is learned.")] = 4096,
    length: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 256,
    steps: Annotated[int, typer.Option(help="Updates.")] = 1000,
    batch: Annotated[int, typer.Option(help="Sequences of one pass of one process.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Passes of an update.")] = 1,
    optimizer: Annotated[
        str,
        typer.Option(
            help="adamw, adamw-8bit, adamw-4bit, dct-adamw, trion, galore, spectron, or a name of transformers' optim."
        ),
    ] = "adamw",
    optimizer_option: OptimizerOptions = None,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 3e-3,
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = 0.0,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient; 0 for none.")] = 1.0,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Step inside the backward pass and free each gradient.")
    ] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Mixed precision.")] = False,
    dense: Annotated[
        bool, typer.Option("--dense", help="Write the trained model with ordinary linear layers.")
    ] = False,
    eval_steps: Annotated[int, typer.Option(help="Evaluate every so many updates.")] = 250,
    save_steps: Annotated[int, typer.Option(help="Write a checkpoint every so many updates.")] = 250,
    seed: Annotated[int, typer.Option(help="Of the model, the supports and the order of the text.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last whole checkpoint in --output.")
    ] = False,
    overwrite: Overwrite = False,
    json_: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Train a language model from scratch, full or structured, and say what it took of time and memory.

    Under `torchrun` each process takes its share of every batch.

    Example: `eckart pretrain --method sltrain --option r=32 --steps 2000 --output run`
    """
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
            dense=dense,
            eval_steps=eval_steps,
            save_steps=save_steps,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            options=parse_options(option),
            optimizer_options=parse_options(optimizer_option),
            on_step=on_step,
        )
    if os.environ.get("RANK", "0") != "0":
        return
    if json_:
        show_json(dataclasses.asdict(report))
        return
    rows = table("memory", "predicted MB", "measured MB")
    for kind, size in report.predicted.items():
        rows.add_row(kind, f"{size / 1e6:,.1f}", f"{report.measured[kind] / 1e6:,.1f}")
    show(rows)
    print(
        f"{report.method}, {report.parameters:,} parameters, {report.steps:,} steps, {report.tokens:,} tokens at "
        f"{report.tokens_per_second:,.0f} a second. Held out: perplexity {report.perplexity:.2f}, "
        f"{report.bits_per_byte:.3f} bits a byte. Written: {output}"
    )
