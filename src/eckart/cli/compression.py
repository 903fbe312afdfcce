"""`eckart compare compression`: every way of making a model smaller, at one size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from eckart.arguments import check_least
from eckart.cli.command import Answer
from eckart.cli.compare import LIMITS, answer
from eckart.cli.console import tell_task
from eckart.cli.options import METHOD, OUTPUT, TRAINING, Data, Model, Overwrite, choices, option
from eckart.cli.task import TaskArguments
from eckart.cli.words import rates
from eckart.compression._asked import COMPRESSORS, check_size
from eckart.jobs.compare.names import MAESTRO


def _methods() -> list[str]:
    return ["all", MAESTRO, *COMPRESSORS]


def compare_compression(
    task: TaskArguments,
    model: Model = None,
    data: Data = None,
    methods: Annotated[
        str,
        option(
            "NAMES",
            "all, or names with commas; see `eckart methods --family compression`.",
            METHOD,
            autocompletion=choices(_methods),
        ),
    ] = "all",
    ratio: Annotated[
        float | None,
        option("SHARE", "Share of the linear layers' parameters to remove; 0.2 when left out.", METHOD),
    ] = None,
    budget: Annotated[
        str | None, option("SIZE", "Instead, the size of the whole model: 70%, 95M numbers, 180MB.", METHOD)
    ] = None,
    calibration: Annotated[
        int, option("N", "Training examples, or blocks of text, that the statistics see.", METHOD)
    ] = 128,
    steps: Annotated[
        int, option("N", "Steps of healing; tuning runs have half as many. 0 heals nothing.", TRAINING)
    ] = 0,
    seeds: Annotated[
        int | None, option("N", "Final runs of a method at most, where there is healing.", TRAINING)
    ] = None,
    lr: Annotated[
        list[str] | None,
        option(
            "RATES",
            "Learning rates of healing, 3e-5,1e-4,3e-4 for every method or NAME=1e-4,… for one (repeated).",
            TRAINING,
        ),
    ] = None,
    batch_size: Annotated[int | None, option("N", "Examples a step, and of calibration.", TRAINING)] = None,
    max_length: Annotated[int | None, option("N", "Tokens of an example at most.", TRAINING)] = None,
    time: Annotated[
        str | None, option("TIME", "What it may take: 90s, 10m, 2h; no end when left out.", TRAINING)
    ] = None,
    max_bytes: Annotated[
        str | None, option("SIZE", "Methods whose weights take more are no candidates: 200MB.", LIMITS)
    ] = None,
    output: Annotated[Path, option("DIR", "Directory of the results.", OUTPUT)] = Path("eckart-compare"),
    storage: Annotated[
        str | None,
        option("URL", "Database that machines share; start the same command on each.", OUTPUT),
    ] = None,
    overwrite: Overwrite = False,
) -> Answer:
    """Compress a model with every method to one size, and say which to use. Resumes when repeated.

    Example: `eckart compare compression --model path/to/model --data texts.txt --kind causal-lm --ratio 0.2`
    """
    check_least(0, steps=steps)
    check_size(ratio, budget)
    learning_rates, said = rates(lr), task.given()

    import eckart

    results = eckart.compare_compression(
        model,
        data,
        methods=methods,
        ratio=ratio,
        budget=budget,
        calibration=calibration,
        steps=steps,
        seeds=seeds,
        learning_rates=learning_rates,
        batch_size=batch_size,
        max_length=max_length,
        time=time,
        max_bytes=max_bytes,
        output=output,
        storage=storage,
        overwrite=overwrite,
        on_task=tell_task,
        **said,
    )
    return answer(results, output)
