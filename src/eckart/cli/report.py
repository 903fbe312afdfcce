"""`eckart report`: the page of a comparison made again, or several comparisons on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.command import Answer
from eckart.cli.console import table
from eckart.cli.options import OUTPUT, option
from eckart.errors import InputError


def report(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIR…", help="Directories that `eckart compare` wrote."),
    ],
    output: Annotated[
        Path | None,
        option("FILE", "The page over several; eckart-report.html when not given.", OUTPUT),
    ] = None,
) -> Answer:
    """Make the page of a comparison again, or join several into one page.

    Of several the page shows the rank of every method over models and data, and how sure it is; of one it is
    report.html in its directory.

    Example: `eckart report eckart-compare reviews-compare --output report.html`
    """
    if len(directories) == 1:
        from eckart.jobs.compare.report import build_report

        if output is not None:
            raise InputError(
                "--output is for a page over several: that of one comparison is report.html in it"
            )
        page = build_report(directories[0])
        return Answer({"output": str(page)}, (f"Report: {page}",))

    from eckart.jobs.compare.joined import build_joined

    output = output or Path("eckart-report.html")
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
