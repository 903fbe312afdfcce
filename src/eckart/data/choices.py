"""Questions with answers to choose from, as HellaSwag, PIQA, ARC, MMLU and their like have them, in one form.

An example is a context and its choices; its label is the index of the right one. Choices are a list in one column, or
stand in columns of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eckart.data.columns import existing
from eckart.data.splits import Split
from eckart.data.structured import Structured, listed, named, place
from eckart.data.tables import Table, is_missing
from eckart.errors import InputError

CHOICES = "choices"
"""A target as `CLASSES` and its like are: the right one of several answers."""
LISTS = ("choices", "endings", "options")
"""Columns that hold all choices of an example."""
NUMBERED = re.compile(r"(choice|ending|sol|solution|option|answer|op)[_ ]?(\d+|[a-h])")
"""Columns that hold one choice each: sol1, choice_0, answerA."""
TOGETHER = (("context", "question"), ("article", "question"), ("passage", "question"))
CONTEXTS = (
    "ctx",
    "question",
    "question_stem",
    "goal",
    "premise",
    "startphrase",
    "context",
    "sentence",
    "prompt",
    "text",
)
RIGHT = ("label", "answer", "answerkey", "gold", "correct", "target", "cop")
HIDDEN = ("", "-1")


@dataclass(frozen=True)
class _Columns:
    context: tuple[str, ...]
    choices: tuple[str, ...]
    label: str


def read_choices(
    tables: Mapping[str, Table],
    text_column: str | None,
    label_column: str | None,
    notes: list[str],
    *,
    wanted: bool,
) -> Structured | None:
    """Contexts, choices and the index of the right one; None where the tables hold no such.

    A label is a letter, the mark that a choice carries, or an index: from 0, or from 1 where no 0 occurs and the number
    of choices does.

    Args:
        tables: by split.
        text_column: the context, or with commas the context and the column or columns of choices.
        label_column: of the right one.
        notes: what is found is added.
        wanted: refuse tables that have none.

    Raises:
        InputError: a column that is not there, a cell that is missing or of the wrong type, a label that is no choice.
    """
    first = next(iter(tables.values()))
    columns = _columns(first, text_column, label_column, wanted)
    if columns is None:
        return None
    names = [*columns.context, *columns.choices, columns.label]
    parts: dict[str, tuple[list[tuple[str, tuple[str, ...]]], list[list[str] | None]]] = {}
    for part, table in tables.items():
        for name in names:
            existing(table, name, "--text-column" if name != columns.label else "--label-column")
        if all(_shown(value) in HIDDEN for value in table.columns[columns.label]):
            notes.append(f"the {part} split has hidden labels (all empty or -1) and is left out")
            continue
        rows = [_row(table, row, columns) for row in range(len(table))]
        parts[part] = [(context, choices) for context, choices, _ in rows], [marks for *_, marks in rows]
    if not parts:
        raise InputError(f"--data {first.source}: every label is empty or -1, there is nothing to learn from")
    start = _start(tables, parts, columns.label, notes)
    sizes = {len(choices) for inputs, _ in parts.values() for _, choices in inputs}
    few, most = min(sizes), max(sizes)
    notes.append(f"{few if few == most else f'{few} to {most}'} choices for each example")
    splits = {
        part: Split(inputs, [_index(tables[part], row, columns.label, inputs[row][1], marks[row], start)
                             for row in range(len(inputs))])
        for part, (inputs, marks) in parts.items()
    }  # fmt: skip
    return Structured(splits, None, names)


def _columns(table: Table, text: str | None, label: str | None, wanted: bool) -> _Columns | None:
    if text is not None and not wanted:
        return None
    given = [existing(table, name.strip(), "--text-column") for name in text.split(",")] if text else []
    right = existing(table, label, "--label-column") if label else named(table, RIGHT)
    choices = tuple(given[1:]) or _choices(table, wanted)
    context = tuple(given[:1]) or _context(table)
    if context and choices and right:
        return _Columns(context, choices, right)
    if not wanted:
        return None
    what, option, known = (
        ("context", "--text-column", CONTEXTS)
        if not context
        else ("choices", "--text-column CONTEXT,CHOICES", (*LISTS, "sol1", "choice_0"))
        if not choices
        else ("right choice", "--label-column", RIGHT)
    )
    raise InputError(
        f"--kind multiple-choice: no column of the {what} ({', '.join(known)}) in {table.listed}; name it with {option}"
    )


def _choices(table: Table, wanted: bool) -> tuple[str, ...]:
    """The column of lists of choices, or those of one choice each in their order."""
    for name in table.columns:
        first = next((cell for cell in table.columns[name] if not is_missing(cell)), None)
        if name.lower() in LISTS and isinstance(first, list | dict):
            return (name,)
    found: dict[str, list[tuple[int, str]]] = {}
    for name in table.columns:
        if match := NUMBERED.fullmatch(name.lower()):
            mark = match[2]
            found.setdefault(match[1], []).append((int(mark) if mark.isdigit() else ord(mark), name))
    several = next((columns for columns in found.values() if len(columns) > 1), [])
    other = named(table, LISTS) if wanted and not several else None
    return tuple(name for _, name in sorted(several)) if other is None else (other,)


def _context(table: Table) -> tuple[str, ...]:
    for pair in TOGETHER:
        both = [named(table, (name,)) for name in pair]
        if None not in both:
            return tuple(name for name in both if name is not None)
    found = named(table, CONTEXTS)
    return () if found is None else (found,)


def _row(table: Table, row: int, columns: _Columns) -> tuple[str, tuple[str, ...], list[str] | None]:
    """Context, choices, and the marks that the choices carry where they carry some."""
    context = " ".join(
        _text(table.columns[name][row], place(table, row + 1, name)) for name in columns.context
    )
    if len(columns.choices) > 1:
        cells: Sequence[Any] = [table.columns[name][row] for name in columns.choices]
        return (
            context,
            tuple(_text(c, place(table, row + 1, n)) for c, n in zip(cells, columns.choices, strict=True)),
            None,
        )
    name = columns.choices[0]
    cell, where = table.columns[name][row], place(table, row + 1, name)
    marks: list[str] | None = None
    if isinstance(cell, dict) and {"text", "label"} <= cell.keys():
        marks, cell = (
            [str(mark) for mark in listed(cell["label"], where, "marks of the choices")],
            cell["text"],
        )
    cells = listed(cell, where, "choices")
    if all(isinstance(choice, dict) and {"text", "label"} <= choice.keys() for choice in cells):
        marks, cells = [str(choice["label"]) for choice in cells], [choice["text"] for choice in cells]
    if len(cells) < 2 or (marks is not None and len(marks) != len(cells)):
        told = "1 choice" if marks is None else f"{len(cells)} choices with {len(marks)} marks"
        raise InputError(f"{where}: {told}; give two choices or more, and a mark for each or none")
    return context, tuple(_text(choice, where) for choice in cells), marks


def _text(cell: Any, where: str) -> str:
    if is_missing(cell) or (isinstance(cell, str) and not cell.strip()):
        raise InputError(f"{where}: the text is missing; fill it in or remove the row")
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise InputError(f"{where}: {cell!r:.40} is not text; choose other columns with --text-column")
    return str(cell).strip()


def _shown(value: Any) -> str:
    if is_missing(value):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _start(tables: Mapping[str, Table], parts: Mapping[str, Any], label: str, notes: list[str]) -> int:
    """Whether indices count from 0 or from 1."""
    last = False
    for part, (inputs, marks) in parts.items():
        for value, (_, choices), own in zip(tables[part].columns[label], inputs, marks, strict=True):
            shown = _shown(value)
            if own is not None or not shown.isdigit():
                continue
            if int(shown) == 0:
                return 0
            last |= int(shown) == len(choices)
    if last:
        notes.append(f"column {label} counts the choices from 1")
    return int(last)


def _index(
    table: Table, row: int, label: str, choices: Sequence[str], marks: list[str] | None, start: int
) -> int:
    shown = _shown(table.columns[label][row])
    found = -1
    if marks is not None and shown in marks:
        found = marks.index(shown)
    elif shown.isdigit():
        found = int(shown) - start
    elif len(shown) == 1 and shown.isascii() and shown.isalpha():
        found = ord(shown.lower()) - ord("a")
    if not 0 <= found < len(choices):
        raise InputError(
            f"{place(table, row + 1, label)}: {shown!r} is none of its {len(choices)} choices; give an index from 0, "
            "or a letter from A"
        )
    return found
