"""Options that several commands have: what they are called, what they mean, under which heading help shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from eckart.catalog import methods
from eckart.tasks.optimizers import OPTIMIZERS
from eckart.tasks.options import KindName

MODEL_AND_DATA, METHOD, TRAINING, OUTPUT, COMMON = (
    "Model and data",
    "Method",
    "Training",
    "Output",
    "Common",
)
"""Headings of `--help`; options without one stand first, under "Options"."""


def option(metavar: str, help: str, panel: str | None = None, *names: str, **more: Any) -> Any:
    """An option that takes a value.

    Args:
        metavar: what help calls the value.
        help: what it means.
        panel: the heading of help that it stands under.
        names: how it is written, where that is not the parameter's own name.
        more: passed to `typer.Option`.
    """
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, **more)


def flag(*names: str, help: str, panel: str | None = None, **more: Any) -> Any:
    """An option that takes no value and is off unless it is given."""
    return typer.Option(*names, metavar="", help=help, rich_help_panel=panel, **more)


def choices(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Shell completion for a name, or for the last of several with commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names() if name.startswith(last)]

    return complete


def adapters() -> list[str]:
    """The slugs of the methods that are adapters."""
    return [method.slug for method in methods("adapters")]


Model = Annotated[
    str | None,
    option(
        "MODEL",
        "Model directory or hub name, or smollm2 (extra demo-lm); when left out a built-in one: MiniLM, "
        "for causal-lm a code model.",
        MODEL_AND_DATA,
    ),
]
Data = Annotated[
    str | None,
    option(
        "DATA",
        "File, directory or hub name; Python's own docstrings when left out.",
        MODEL_AND_DATA,
    ),
]
Kind = Annotated[
    KindName,
    typer.Option(help="The task; auto: as the data says.", rich_help_panel=MODEL_AND_DATA),
]
TextColumn = Annotated[
    str | None,
    option(
        "NAME",
        "Column of the text, where the data has columns; two with a comma for pairs, a context and its choices.",
        MODEL_AND_DATA,
    ),
]
LabelColumn = Annotated[str | None, option("NAME", "Column of the label.", MODEL_AND_DATA)]
Sep = Annotated[
    str | None,
    option(
        "CHARS",
        "Between the fields of a text file, such as ; or :: or tab; as its ending says when left out.",
        MODEL_AND_DATA,
    ),
]
Columns = Annotated[
    str | None,
    option("NAMES", "Names of the columns, with commas, of a text file without a header.", MODEL_AND_DATA),
]
Encoding = Annotated[str, option("NAME", "Of a text file, such as latin-1.", MODEL_AND_DATA)]
Limit = Annotated[
    list[str] | None,
    option("SPLIT=N", "Use at most N examples of a split; may be repeated.", MODEL_AND_DATA),
]
Targets = Annotated[
    str | None,
    option("NAMES", "Layers to adapt: names with commas, a regular expression, or all-linear.", METHOD),
]
BATCH = option(
    "N", "Examples a step, or auto: the usual number, in as few equal parts as the memory holds.", TRAINING
)
Optimizer = Annotated[
    str, option("NAME", f"{', '.join(OPTIMIZERS)}.", TRAINING, autocompletion=choices(lambda: OPTIMIZERS))
]
OptimizerOption = Annotated[
    list[str] | None,
    option("NAME=VALUE", "An option of the optimizer, such as rank=64; may be repeated.", TRAINING),
]
Base = Annotated[
    str | None,
    option("BASE", "The base model; the one that the adapter names when left out.", None, "--model"),
]
Checkpoint = Annotated[str, typer.Argument(metavar="ADAPTER", help="Directory of the adapter.")]
Output = Annotated[Path, option("DIR", "Directory to write.", OUTPUT)]
Overwrite = Annotated[
    bool, flag("--overwrite", help="Replace what is in the output directory.", panel=OUTPUT)
]
