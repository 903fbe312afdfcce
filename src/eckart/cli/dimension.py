"""`eckart measure intrinsic-dimension`: how many dimensions a task needs."""

from __future__ import annotations

from typing import Annotated, Literal

from eckart.arguments import check_least
from eckart.cli.command import Answer
from eckart.cli.console import progress, table, tell_task
from eckart.cli.options import METHOD, TRAINING, Data, Model, Output, Overwrite, option
from eckart.cli.task import TaskArguments
from eckart.cli.words import rates
from eckart.errors import InputError


def measure_dimension(
    output: Output,
    task: TaskArguments,
    model: Model = None,
    data: Data = None,
    dimensions: Annotated[
        str, option("NUMBERS", "Dimensions of the subspaces, with commas.", METHOD)
    ] = "10,30,100,300,1000,3000",
    share: Annotated[float, option("SHARE", "Of full training that is to be reached.", METHOD)] = 0.9,
    of: Annotated[
        Literal["score", "gain"],
        option("NAME", "The share is of the score, or of the gain over the trivial predictor.", METHOD),
    ] = "score",
    projection: Annotated[
        Literal["fastfood", "dense", "sparse"], option("NAME", "How a subspace is drawn.", METHOD)
    ] = "fastfood",
    structure: Annotated[
        Literal["global", "per-tensor", "said"],
        option("NAME", "One subspace over all layers, one for each, or each with a scale.", METHOD),
    ] = "global",
    steps: Annotated[
        int | None, option("N", "Steps of a run; tuning runs have half as many.", TRAINING)
    ] = None,
    seeds: Annotated[int, option("N", "Runs of each dimension on the test split.", TRAINING)] = 3,
    lr: Annotated[
        list[str] | None,
        option("RATES", "Learning rates of the subspaces, with commas; the method's own.", TRAINING),
    ] = None,
    batch_size: Annotated[int | None, option("N", "Examples a step.", TRAINING)] = None,
    max_length: Annotated[int | None, option("N", "Tokens of an example at most.", TRAINING)] = None,
    overwrite: Overwrite = False,
) -> Answer:
    """Measure how many dimensions a task needs: the fewest that reach 90 % of full training. Resumes when repeated.

    Example: `eckart measure intrinsic-dimension --model path/to/model --data texts.csv --output dimension`
    """
    check_least(1, steps=steps, seeds=seeds, batch_size=batch_size, max_length=max_length)
    numbers, learning_rates, said = _numbers(dimensions), rates(lr), task.given()
    if isinstance(learning_rates, dict):
        raise InputError(f"--lr {' '.join(lr or ())}: give numbers with commas, there is one method")

    from eckart.jobs.measure.dimension import measure_dimension as run

    with progress("runs", off_terminal=True) as on_run:
        found = run(
            model,
            data,
            output=output,
            dimensions=numbers,
            share=share,
            of=of,
            projection=projection,
            structure=structure,
            steps=steps,
            seeds=seeds,
            learning_rates=learning_rates,
            batch_size=batch_size,
            max_length=max_length,
            overwrite=overwrite,
            on_run=on_run,
            on_task=tell_task,
            **said,
        )
    from eckart.jobs.compare.leaderboard import metric_named
    from eckart.jobs.measure.dimension import plain

    metric = metric_named(found["metric"])
    rows = table("dimensions", metric.name, "95 % interval", "learning rate", "trained", "seeds")
    for row in found["curve"]:
        rows.add_row(
            {0: "0, the head alone", None: "all, full training"}.get(row["d"], f"{row['d'] or 0:,}"),
            metric.show(row["score"]),
            metric.interval(row["low"], row["high"]),
            f"{row['lr']:g}" if row["lr"] else "-",
            f"{row['parameters']:,}",
            str(row["seeds"]),
        )
    return Answer(plain(found), (found["sentence"], rows, f"Curve: {output / 'dimension.svg'}"))


def _numbers(words: str) -> list[int]:
    try:
        return [int(word) for word in words.split(",")]
    except ValueError:
        raise InputError(
            f"--dimensions {words}: write whole numbers with commas, such as 10,100,1000"
        ) from None
