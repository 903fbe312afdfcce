"""What the command line shows: errors in one line, tables, JSON and progress; results on standard output alone."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from eckart.escapes import one_line
from eckart.files import disk_is_full
from eckart.quiet import quiet
from eckart.tasks.options import AUTO

if TYPE_CHECKING:
    from rich.table import Table


def fail(error: Exception, message: str, *, debug: bool) -> None:
    """Say in one line of standard error what went wrong, after the traceback when debugging."""
    if debug:
        traceback.print_exception(error)
    if disk_is_full(error):
        where = getattr(error, "filename", None) or "the output directory"
        message = f"no space left on the disk while writing {where}: free some and run the command again"
    print("eckart: error:", one_line(" ".join(message.split())), file=sys.stderr)


@contextmanager
def silence(debug: bool) -> Iterator[None]:
    """`quiet` for a command, and for the libraries that it has yet to import; with ``debug`` they may speak."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when transformers is imported
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with nullcontext() if debug else quiet():
        yield


_TEXT_COLUMNS = (
    "method",
    "model",
    "name",
    "family",
    "source",
    "knob",
    "saves",
    "weight",
    "layer",
    "kind",
    "state",
    "split",
    "setting",
    "recipe",
    "here",
)


def table(*columns: str) -> Table:
    """An empty table with these columns, numbers to the right."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        made.add_column(
            column,
            justify="left" if column in _TEXT_COLUMNS else "right",
            overflow="fold",
            no_wrap=place == 0,
        )
    return made


def scores(column: str, metric: str, found: Mapping[str, Mapping[str, Any]]) -> Table:
    """A table of scores with their intervals and, where the task has some, its other scores.

    Args:
        column: what the rows are.
        metric: name of the score.
        found: of each row, the fields of an `eckart.tasks.scoring.Evaluation`.
    """
    others = any(scored["also"] for scored in found.values())
    made = table(column, metric.replace("_", " "), "95% interval", *(["also"] if others else []))
    for name, scored in found.items():
        also = ", ".join(f"{word.replace('_', ' ')} {value:.4f}" for word, value in scored["also"].items())
        interval = f"{scored['ci_low']:.4f} to {scored['ci_high']:.4f}"
        made.add_row(name, f"{scored['score']:.4f}", interval, *([also] if others else []))
    return made


def show(part: Table | str) -> None:
    """Print a line, or a table: as wide as the terminal; 160 columns into a file."""
    if isinstance(part, str):
        print("\n".join(map(one_line, part.split("\n"))))
        return
    from rich.console import Console

    Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 160).print(
        part
    )


def show_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def progress(what: str, *, off_terminal: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error that lives for the block; yields the function that moves it (done, total).

    Args:
        what: is done.
        off_terminal: where standard error is no terminal, a line for each tenth.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def move(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if off_terminal and bar.disable and 10 * done // total > 10 * (done - 1) // total:
                print(f"{what}: {done:,} of {total:,}", file=sys.stderr, flush=True)

        yield move


def tell_task(task: Mapping[str, Any]) -> None:
    """Say on standard error what was understood of a model and its data.

    Args:
        task: as `Task.describe` gives it.
    """
    sizes = ", ".join(f"{split} {size:,}" for split, size in task["sizes"].items())
    told = {
        "task": task["kind"],
        "model": f"{task['model']} ({task['base_parameters']:,} numbers)",
        "trained in": ", ".join(_trained_in(task)),
        "data": task["data"],
        "columns": ", ".join(task["columns"]),
        "examples": sizes,
        "labels": ", ".join(
            f"{name} {count:,}" for name, count in task["label_counts"].get("train", {}).items()
        ),
        "score": "; beside it ".join(filter(None, (task["metric"], ", ".join(task.get("also", ()))))),
        "first example": task["example"],
        "note": "; ".join(task["notes"]),
    }
    for name, value in told.items():
        if value:
            print(f"{name}: {one_line(value)}", file=sys.stderr, flush=True)


def _trained_in(task: Mapping[str, Any]) -> Iterator[str]:
    """Where and at what size the base is trained."""
    yield f"{task['dtype']} on {task['device']}"
    if task["quantize"]:
        yield f"linear layers in {task['quantize']}"
    if task["gradient_checkpointing"]:
        yield "activations computed twice"
    parts = task["gradient_accumulation"]
    if parts != 1:
        yield (
            f"each batch in {parts} parts"
            if parts != AUTO
            else "each batch in as few parts as the memory holds"
        )
