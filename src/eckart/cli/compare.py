"""`eckart compare`: every method at one budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from eckart.arguments import check_pattern
from eckart.cli.checks import check_methods
from eckart.cli.command import Answer
from eckart.cli.console import table
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
    adapters,
    choices,
    flag,
    option,
)
from eckart.cli.words import fields, limits, rates, targets
from eckart.jobs.compare.contenders import LABELS

COSTS = ("trained_parameters", "saved_bytes", "peak_memory_mb", "step_time_ratio")


def compare(
    model: Model = None,
    data: Data = None,
    methods: Annotated[
        str,
        option(
            "NAMES",
            "all, or names with commas. Head only, full fine-tuning and LoRA are always there.",
            METHOD,
            autocompletion=choices(lambda: ["all", *LABELS, *adapters()]),
        ),
    ] = "all",
    budget: Annotated[
        str,
        option("SIZE", "For every method: 0.5% of the model, 200k or 1.5M numbers, 1MB saved.", METHOD),
    ] = "0.5%",
    target_modules: Targets = None,
    steps: Annotated[
        int | None, option("N", "Steps of a final run; a tuning run has half as many.", TRAINING)
    ] = None,
    seeds: Annotated[int | None, option("N", "Final runs of each method.", TRAINING)] = None,
    lr: Annotated[
        list[str] | None,
        option(
            "RATES",
            "Learning rates to try, 1e-4,3e-4,1e-3 for every adapter or NAME=1e-4,… for one method (repeated).",
            TRAINING,
        ),
    ] = None,
    batch_size: Annotated[int | None, option("N", "Examples a step.", TRAINING)] = None,
    max_length: Annotated[int | None, option("N", "Tokens of an example at most.", TRAINING)] = None,
    quick: Annotated[
        bool,
        flag("--quick", help="A first impression: few steps, one learning rate, one seed.", panel=TRAINING),
    ] = False,
    timeout: Annotated[
        float | None, option("SECONDS", "Time after which no further run is begun.", TRAINING)
    ] = None,
    kind: Kind = "auto",
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    sep: Sep = None,
    columns: Columns = None,
    encoding: Encoding = "utf-8",
    limit: Limit = None,
    output: Annotated[Path, option("DIR", "Directory of the results.", OUTPUT)] = Path("eckart-compare"),
    storage: Annotated[
        str | None,
        option("URL", "Database that machines share; start the same command on each.", OUTPUT),
    ] = None,
    overwrite: Overwrite = False,
) -> Answer:
    """Train every method at one budget on the same data, tuned alike, and report which is best. Resumes when repeated.

    Example: `eckart compare --model path/to/model --data reviews.csv --methods lora,svfit,bone --budget 0.5%`
    """
    check_methods(methods)
    check_pattern("--target-modules", target_modules)
    learning_rates, most, layers = rates(lr), limits(limit), targets(target_modules)
    fields(sep, columns, encoding)

    import eckart

    results = eckart.compare(
        model,
        data,
        methods=methods,
        budget=budget,
        steps=steps,
        seeds=seeds,
        batch_size=batch_size,
        max_length=max_length,
        kind=kind,
        text_column=text_column,
        label_column=label_column,
        sep=sep,
        columns=columns,
        encoding=encoding,
        output=output,
        storage=storage,
        timeout=timeout,
        quick=quick,
        overwrite=overwrite,
        learning_rates=learning_rates,
        limits=most,
        target_modules=layers,
    )
    from eckart.jobs.compare.advice import advice
    from eckart.jobs.compare.leaderboard import QUANTITIES, leaderboard, metric_of

    board, told = leaderboard(results), advice(results)
    metric, costs = metric_of(board), [QUANTITIES[name] for name in COSTS]
    rows = table(
        "method", metric.name, "95% interval", *(cost.title for cost in costs), "learning rate", "state"
    )
    for row in board.to_dict("records"):
        rows.add_row(
            row["label"],
            metric.show(row["score"]) if row["seeds"] else "-",
            metric.interval(row["ci_low"], row["ci_high"]),
            *(cost.show(row[cost.column]) for cost in costs),
            f"{row['lr']:g}" if row["lr"] == row["lr"] else "-",
            "" if row["state"] == "complete" else row["state"],
        )
    value = {
        "leaderboard": json.loads(board.to_json(orient="records")),
        "advice": told,
        "output": str(output),
    }
    return Answer(value, (rows, told, f"Report: {output / 'report.html'}"))
