"""What tables of more than a text and a label have in common: columns found by their names, and what they become."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from eckart.data.splits import Split
from eckart.data.tables import Table, is_missing
from eckart.errors import InputError


@dataclass(frozen=True)
class Structured:
    """Splits read from tables.

    Attributes:
        splits: by name.
        names: of what a label or a part of it can be; None where examples have names of their own.
        columns: those that were read.
    """

    splits: dict[str, Split]
    names: list[str] | None
    columns: list[str]


def named(table: Table, names: Iterable[str]) -> str | None:
    """The first of these columns, in whatever case, that a table has."""
    lower = {column.lower(): column for column in reversed(table.columns)}
    return next((lower[name] for name in names if name in lower), None)


def place(table: Table, row: int, column: str) -> str:
    """A cell as messages name it."""
    return f"--data {table.source}, row {row}, column {column}"


def listed(cell: Any, where: str, what: str) -> Sequence[Any]:
    """A cell that holds a list.

    Raises:
        InputError: it is missing, empty, or something else.
    """
    if is_missing(cell) or (isinstance(cell, list | tuple) and not cell):
        raise InputError(f"{where}: the {what} are missing; fill them in or remove the row")
    if not isinstance(cell, list | tuple):
        raise InputError(
            f"{where}: {cell!r:.40} is no list of {what}; give JSON or Parquet, where cells hold lists"
        )
    return cell
