"""`eckart federate`: one LoRA, fine-tuned by many clients that keep their data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from eckart.arguments import hint
from eckart.catalog import methods
from eckart.cli.checks import check_method
from eckart.cli.command import Answer
from eckart.cli.console import scores
from eckart.cli.options import (
    METHOD,
    OUTPUT,
    TRAINING,
    Columns,
    Data,
    Encoding,
    Kind,
    LabelColumn,
    Limit,
    Model,
    Overwrite,
    Sep,
    Targets,
    TextColumn,
    choices,
    flag,
    option,
)
from eckart.cli.words import fields, limits, options, targets
from eckart.errors import InputError
from eckart.jobs.federate import PEFT_LORA

FEDERATION, PROTECTION = "Federation", "Protection"


def _strategies() -> list[str]:
    return [method.slug for method in methods("federated")]


def federate(
    output: Annotated[
        Path, option("DIR", "Directory of the run; the same one goes on with it.", OUTPUT)
    ] = Path("eckart-federate"),
    model: Model = None,
    data: Data = None,
    strategy: Annotated[
        str,
        option(
            "NAME",
            "What makes one update of many: see `eckart methods --family federated`.",
            METHOD,
            autocompletion=choices(_strategies),
        ),
    ] = "lora-fair",
    option_: Annotated[
        list[str] | None,
        option(
            "NAME=VALUE", "An option of the strategy, such as lam=0.1; may be repeated.", METHOD, "--option"
        ),
    ] = None,
    method: Annotated[
        str,
        option("NAME", "What clients train: peft:lora, lora, rslora or another product of factors.", METHOD),
    ] = PEFT_LORA,
    method_option: Annotated[
        list[str] | None,
        option("NAME=VALUE", "An option of it, such as lora_dropout=0.1; may be repeated.", METHOD),
    ] = None,
    rank: Annotated[
        str, option("RANKS", "Rank, or several with commas that clients take in turn.", METHOD)
    ] = "8",
    lora_alpha: Annotated[
        float, option("ALPHA", "α at the highest rank; α/r is the same everywhere.", METHOD)
    ] = 16.0,
    target_modules: Targets = None,
    clients: Annotated[int, option("N", "How many there are.", FEDERATION)] = 20,
    fraction: Annotated[float, option("SHARE", "Of the clients that train in a round.", FEDERATION)] = 0.3,
    min_clients: Annotated[int, option("N", "Fewest updates that make a round.", FEDERATION)] = 2,
    rounds: Annotated[
        int, option("N", "In all; more than before make a finished run longer.", FEDERATION)
    ] = 10,
    partition: Annotated[
        str, option("RULE", "Who holds what: iid, dirichlet:ALPHA, groups or contiguous.", FEDERATION)
    ] = "dirichlet:0.3",
    backend: Annotated[
        Literal["simulation", "processes"],
        option("NAME", "On this machine, or a SuperLink and SuperNodes on loopback.", FEDERATION),
    ] = "simulation",
    workers: Annotated[
        int | None, option("N", "Processes of the simulation; one a core when left out.", FEDERATION)
    ] = None,
    deadline: Annotated[float, option("SECONDS", "That a round waits for its clients.", FEDERATION)] = 600.0,
    port: Annotated[int, option("PORT", "Of the SuperLink, with processes.", FEDERATION)] = 8000,
    tls: Annotated[bool, flag("--tls", help="Encrypt, with processes.", panel=FEDERATION)] = False,
    local_epochs: Annotated[
        int, option("N", "Passes of a client over its examples in a round.", TRAINING)
    ] = 1,
    batch_size: Annotated[int, option("N", "Examples a step.", TRAINING)] = 16,
    lr: Annotated[float, option("RATE", "Learning rate of the factors.", TRAINING)] = 1e-3,
    head_lr: Annotated[float, option("RATE", "Learning rate of the task's head.", TRAINING)] = 5e-3,
    seed: Annotated[int, option("N", "Of everything that is drawn.", TRAINING)] = 0,
    max_length: Annotated[int, option("N", "Tokens of an example at most.", TRAINING)] = 128,
    robust: Annotated[
        str | None,
        option("RULE", "Against bad updates: krum, multi-krum, median, trimmed-mean or bulyan.", PROTECTION),
    ] = None,
    malicious: Annotated[int, option("N", "Bad updates a round that --robust must stand.", PROTECTION)] = 0,
    clip: Annotated[
        float | None, option("NORM", "Differential privacy: largest norm of an update.", PROTECTION)
    ] = None,
    noise: Annotated[float, option("FACTOR", "Its noise multiplier.", PROTECTION)] = 0.0,
    delta: Annotated[float | None, option("DELTA", "Its δ, to account for ε.", PROTECTION)] = None,
    norm_ratio: Annotated[
        float, option("FACTOR", "Refuse updates above this multiple of the round's median norm.", PROTECTION)
    ] = 20.0,
    kind: Kind = "auto",
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    sep: Sep = None,
    columns: Columns = None,
    encoding: Encoding = "utf-8",
    limit: Limit = None,
    overwrite: Overwrite = False,
) -> Answer:
    """Fine-tune LoRA over many clients by Flower: a table of the rounds, in the end an adapter. Resumes when repeated.

    Example: `eckart federate --data reviews.csv --strategy lora-fair --clients 20 --partition dirichlet:0.3`
    """
    from eckart.data.read import check_source
    from eckart.jobs.federate.federating import federate as run
    from eckart.tasks.pretrained import find_model

    if (slug := strategy.strip().lower().replace("_", "-")) not in _strategies():
        raise InputError(f"unknown strategy {strategy!r}: {hint(slug, _strategies())}")
    of_method = options(method_option)
    if method.strip().lower() != PEFT_LORA:
        check_method(method, of_method, None)
    form = fields(sep, columns, encoding)
    find_model(model)
    check_source(data, form)
    try:
        metrics = run(
            model,
            data,
            strategy,
            output=output,
            options=options(option_),
            method=method,
            method_options=of_method,
            clients=clients,
            fraction=fraction,
            min_clients=min_clients,
            rounds=rounds,
            partition=partition,
            ranks=_ranks(rank),
            lora_alpha=lora_alpha,
            target_modules=targets(target_modules),
            local_epochs=local_epochs,
            batch_size=batch_size,
            lr=lr,
            head_lr=head_lr,
            robust=robust,
            malicious=malicious,
            clip=clip,
            noise=noise,
            delta=delta,
            norm_ratio=norm_ratio,
            seed=seed,
            backend=backend,
            workers=workers,
            deadline=deadline,
            port=port,
            tls=tls,
            overwrite=overwrite,
            on_round=_tell,
            kind=kind,
            text_column=text_column,
            label_column=label_column,
            **form,
            max_length=max_length,
            limits=limits(limit),
        )
    except KeyboardInterrupt:
        print("eckart: go on with the same command", file=sys.stderr)
        raise
    rows = scores("split", metrics["metric"], {split: metrics[split] for split in ("validation", "test")})
    told = (
        f"{metrics['strategy']}: {metrics['rounds']} rounds, {metrics['clients']} clients, "
        f"{metrics['bytes_up'] / 1e6:,.1f} MB up, {metrics['bytes_down'] / 1e6:,.1f} MB down. Written: {output}"
    )
    return Answer(metrics, (rows, told, f"Report: {output / 'report.html'}"))


def _ranks(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise InputError(
            f"--rank {text}: write a whole number, or several with commas, such as 4,8,16"
        ) from None


def _tell(row: dict[str, Any], rounds: int) -> None:
    """One line of standard error a round."""
    refused = f", {row['refused']:g} not used" if row["refused"] else ""
    print(
        f"round {row['round']:g}/{rounds}: score {row['score']:.4f}, {row['clients']:g} clients{refused}, "
        f"aggregation error {row['error']:.3g}, {row['bytes_up'] / 1e6:.1f} MB up, {row['seconds']:.0f} s",
        file=sys.stderr,
        flush=True,
    )
