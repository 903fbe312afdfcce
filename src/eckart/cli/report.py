"""`eckart report`: several comparisons on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.command import Answer
from eckart.cli.console import table
from eckart.cli.options import OUTPUT, option


def report(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIR…", help="Directories that `eckart compare` wrote; two or more."),
    ],
    output: Annotated[Path, option("FILE", "The page to write.", OUTPUT)] = Path("eckart-report.html"),
) -> Answer:
    """Join several comparisons into one page: the rank of every method over models and data, and how sure it is.

    Example: `eckart report eckart-compare reviews-compare --output report.html`
    """
    from eckart.jobs.compare.joined import build_joined

    value = build_joined(directories, output)
    rows = table("method", "mean rank", "95% interval", "comparisons")
    for rank in value["ranks"]:
        rows.add_row(
            rank["label"],
            f"{rank['rank']:.1f}",
            f"{rank['low']:.1f}–{rank['high']:.1f}",
            str(rank["comparisons"]),
        )
    answers = [f"{each['name']}: {each['answer']}" for each in value["comparisons"]]
    return Answer({**value, "output": str(output)}, (rows, *answers, f"Report: {output}"))
