"""`eckart compare`: every method at one budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from eckart.arguments import check_least, check_pattern
from eckart.cli.checks import check_methods
from eckart.cli.command import Answer
from eckart.cli.console import table, tell_task
from eckart.cli.options import (
    BATCH,
    METHOD,
    OUTPUT,
    TRAINING,
    Data,
    Model,
    Optimizer,
    Overwrite,
    Targets,
    adapters,
    choices,
    flag,
    option,
)
from eckart.cli.task import TaskArguments
from eckart.cli.words import count_or_auto, rates, targets
from eckart.jobs.compare.names import LABELS
from eckart.jobs.compare.peft_methods import peft_names
from eckart.jobs.compare.protocols import foretold, settle
from eckart.tasks.optimizers import check_optimizer
from eckart.tasks.options import RECIPES, check_recipe

if TYPE_CHECKING:
    import pandas as pd

LIMITS = "Your limits"


def compare(
    task: TaskArguments,
    model: Model = None,
    data: Data = None,
    methods: Annotated[
        str,
        option(
            "NAMES",
            "all, or names with commas, also lora+allora, full@galore, and PEFT's own such as peft:dora. Head "
            "only, full fine-tuning and LoRA are always there.",
            METHOD,
            autocompletion=choices(lambda: ["all", *LABELS, *adapters(), *peft_names()]),
        ),
    ] = "all",
    budget: Annotated[
        str,
        option("SIZE", "For every method: 0.5% of the model, 200k or 1.5M numbers, 1MB saved.", METHOD),
    ] = "0.5%",
    target_modules: Targets = None,
    optimizer: Optimizer = "adamw",
    steps: Annotated[
        int | None, option("N", "Steps of a final run; tuning runs have half as many.", TRAINING)
    ] = None,
    seeds: Annotated[int | None, option("N", "Final runs of a method at most.", TRAINING)] = None,
    lr: Annotated[
        list[str] | None,
        option(
            "RATES",
            "Learning rates to try, 1e-4,3e-4,1e-3 for every adapter or NAME=1e-4,… for one method (repeated).",
            TRAINING,
        ),
    ] = None,
    batch_size: Annotated[str | None, BATCH] = None,
    max_length: Annotated[int | None, option("N", "Tokens of an example at most.", TRAINING)] = None,
    quick: Annotated[
        bool,
        flag("--quick", help="A first impression: few steps, one learning rate, one seed.", panel=TRAINING),
    ] = False,
    recipe: Annotated[
        str | None,
        option(
            "NAME", f"Follow a published protocol: {', '.join(RECIPES)} (PEFT's MetaMathQA board).", TRAINING
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        flag("--dry-run", help="Say what would be done, beside the recipe; train nothing.", panel=TRAINING),
    ] = False,
    time: Annotated[
        str | None,
        option(
            "TIME",
            "What the race may take: 90s, 10m, 2h; 10m on the built-in data, otherwise no end.",
            TRAINING,
        ),
    ] = None,
    max_memory: Annotated[
        str | None, option("SIZE", "Methods with a larger peak of memory are no candidates: 4GB.", LIMITS)
    ] = None,
    max_bytes: Annotated[
        str | None, option("SIZE", "Methods that save more are no candidates: 2MB.", LIMITS)
    ] = None,
    max_step_time: Annotated[
        str | None,
        option("RATIO", "Nor those whose step takes longer: 1.5 times the frozen model's.", LIMITS),
    ] = None,
    cost: Annotated[
        Literal["bytes", "memory", "step-time"],
        typer.Option(help="What the cheapest of several is cheapest by.", rich_help_panel=LIMITS),
    ] = "bytes",
    output: Annotated[Path, option("DIR", "Directory of the results.", OUTPUT)] = Path("eckart-compare"),
    storage: Annotated[
        str | None,
        option("URL", "Database that machines share; start the same command on each.", OUTPUT),
    ] = None,
    workers: Annotated[
        str,
        option("N", "Processes that share the runs, or auto: one a GPU, else one for four cores.", OUTPUT),
    ] = "1",
    overwrite: Overwrite = False,
) -> Answer:
    """Race every method at one budget on the same data, tuned alike, and say which to use. Resumes when repeated.

    Example: `eckart compare --model path/to/model --data reviews.csv --methods lora,svfit,bone --budget 0.5%`
    """
    check_methods(methods)
    check_pattern("--target-modules", target_modules)
    check_optimizer(optimizer)
    learning_rates, layers, said = rates(lr), targets(target_modules), task.given()
    check_recipe(recipe, task.kind)
    said |= {} if recipe is None else {"recipe": recipe}
    size = count_or_auto("--batch-size", batch_size)
    if dry_run:
        asked = {"steps": steps, "seeds": seeds, "batch_size": size, "max_length": max_length}
        check_least(1, steps=steps, seeds=seeds, max_length=max_length)
        given = {
            "model": model,
            "data": data,
            "methods": methods,
            "budget": budget,
            "learning_rates": learning_rates,
        }
        return _foretold(quick, asked, given, said)

    import eckart

    results = eckart.compare(
        model,
        data,
        methods=methods,
        budget=budget,
        steps=steps,
        seeds=seeds,
        batch_size=size,
        max_length=max_length,
        output=output,
        storage=storage,
        workers=count_or_auto("--workers", workers) or 1,
        time=time,
        max_memory=max_memory,
        max_bytes=max_bytes,
        max_step_time=max_step_time,
        cost=cost,
        quick=quick,
        overwrite=overwrite,
        learning_rates=learning_rates,
        target_modules=layers,
        optimizer=optimizer,
        on_task=tell_task,
        **said,
    )
    return answer(results, output)


def answer(results: pd.DataFrame, output: Path) -> Answer:
    """What a comparison found: its board, its sentences, and why methods were dropped.

    Args:
        results: one row for each run.
        output: the directory of the comparison.
    """
    from eckart.jobs.compare.advice import sentences
    from eckart.jobs.compare.examples import read_examples
    from eckart.jobs.compare.judgement import judge, reference
    from eckart.jobs.compare.leaderboard import forgetting_shown, metric_named, metric_of, quantities_of
    from eckart.jobs.compare.reading import read_study, read_terms
    from eckart.jobs.compare.tables import standing

    terms = read_terms(read_study(output / "compare.json"))
    judgement = judge(results, read_examples(output / "examples.parquet"), terms)
    board, told = judgement.board, sentences(judgement)
    metric, (held, held_name) = metric_of(board), reference(board)
    costs = [item for name, item in quantities_of(board).items() if name != "seconds"]
    others = [json.loads(text) for text in board["also"]]
    names = list(dict.fromkeys(name for also in others for name in also))
    forgotten = forgetting_shown(board)
    rows = table(
        "method",
        metric.name,
        "to the best",
        f"to {held_name}",
        *(metric_named(name).name for name in names),
        *(["forgetting"] if forgotten else []),
        *(item.title for item in costs),
        "learning rate",
        "state",
    )
    for row, entry, also in zip(board.to_dict("records"), board.itertuples(), others, strict=True):
        rows.add_row(
            row["label"],
            metric.show(row["score"]) if row["seeds"] else "-",
            *(
                metric.change(row[f"to_{word}"], row[f"to_{word}_low"], row[f"to_{word}_high"])
                for word in ("best", held)
            ),
            *(metric_named(name).show(also[name]) if name in also else "-" for name in names),
            *([forgotten[entry.Index]] if forgotten else []),
            *(item.show(row[item.column]) for item in costs),
            f"{row['lr']:g}" if row["lr"] == row["lr"] else "-",
            standing(entry),
        )
    value = {
        "leaderboard": json.loads(board.to_json(orient="records")),
        "answer": told[0],
        "advice": " ".join(told),
        "dropped": dict(terms.dropped),
        "output": str(output),
    }
    why = [f"{names}: {reason}" for names, reason in _reasons(board, terms.dropped)]
    return Answer(value, (told[0], rows, *told[1:], *why, f"Report: {output / 'report.html'}"))


def _foretold(quick: bool, asked: dict[str, Any], given: dict[str, Any], said: dict[str, Any]) -> Answer:
    """What a comparison would do, beside what its recipe says."""
    preset, spent, options = settle(quick, given["data"], asked, cast(Any, said))
    told = foretold(
        {**options, **given, **spent, "trials": preset.trials, "limits": preset.limits(said["limits"])}
    )
    rows = table("setting", *(["recipe"] if "recipe" in said else []), "here")
    for name, there, here in told:
        rows.add_row(name, *([there] if "recipe" in said else []), here)
    value = {name: {"recipe": there, "here": here} for name, there, here in told}
    return Answer(value, (rows, "Nothing was trained: leave --dry-run out."))


def _reasons(board: pd.DataFrame, dropped: Mapping[str, str]) -> list[tuple[str, str]]:
    labels = dict(zip(board["method"], board["label"], strict=True))
    return [(f"{labels.get(name, name)} was dropped", reason) for name, reason in dropped.items()]
