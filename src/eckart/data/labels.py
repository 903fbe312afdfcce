"""Labels of a table: classes, numbers to be predicted, or several labels of one example; which, is decided here."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eckart.data.tables import Table, is_missing
from eckart.errors import InputError

CLASSES, NUMBERS, SEVERAL = "classes", "numbers", "several"
"""One of a few names; a number; any of a few names."""
MANY = 10
"""Whole numbers, more than this many different ones, may as well be a score; from here on it is said."""
OUTNUMBERED = 2.0
"""Times that a class may be as frequent as another before it is said."""
Labels = list[Any]


@dataclass(frozen=True)
class Encoded:
    """Labels as a task takes them.

    Attributes:
        target: `CLASSES`, `NUMBERS` or `SEVERAL`; None where there are none.
        names: of the classes; None for numbers.
        columns: by split, for each example the index of its class, its number, or a 0 or 1 for each name.
    """

    target: str | None
    names: list[str] | None
    columns: dict[str, Labels | None]


def read_labels(table: Table, names: Sequence[str]) -> Labels:
    """The labels of a table, every cell checked: text for each example, or the list of its labels.

    Args:
        table: as it was read.
        names: of the column; of several, each says by 0 or 1 whether its name is a label of the example.

    Raises:
        InputError: a cell that is missing or of the wrong type.
    """
    if len(names) > 1:
        rows = zip(*(_flags(table, name) for name in names), strict=True)
        return [[name for name, flag in zip(names, row, strict=True) if flag] for row in rows]
    labels: Labels = []
    for row, value in enumerate(table.columns[names[0]], 1):
        where = f"--data {table.source}, row {row}, column {names[0]}"
        if is_missing(value) or (isinstance(value, str) and value.strip().lower() in ("", "nan")):
            raise InputError(f"{where}: the label is missing; fill it in or remove the row")
        if isinstance(value, dict):
            raise InputError(f"{where}: the label {value!r:.40} is not one class nor a list of them")
        if isinstance(value, list | tuple):
            if any(is_missing(item) or isinstance(item, list | dict) for item in value):
                raise InputError(f"{where}: the labels {value!r:.40} hold one that is none; remove it")
            labels.append([_shown(item) for item in value])
        else:
            labels.append(_shown(value))
    if len({isinstance(label, list) for label in labels}) > 1:
        raise InputError(
            f"--data {table.source}: column {names[0]} holds single labels and lists of them; write all as lists"
        )
    return labels


def _flags(table: Table, name: str) -> list[bool]:
    flags = []
    for row, value in enumerate(table.columns[name], 1):
        if isinstance(value, list | dict) or (number := as_number(str(value))) not in (0.0, 1.0):
            if str(value).strip().lower() not in ("true", "false"):
                raise InputError(
                    f"--data {table.source}, row {row}, column {name}: of several label columns each holds 0 or 1, "
                    f"not {value!r:.40}"
                )
            number = float(str(value).strip().lower() == "true")
        flags.append(bool(number))
    return flags


def _shown(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def encode_labels(
    labels: Mapping[str, Labels | None],
    tables: Mapping[str, Table],
    notes: list[str],
    wanted: str | None = None,
) -> Encoded:
    """Names of the classes (numbers in their order, names in theirs) and the index of each example's class; or the
    numbers; or the sets. Numbers with a fraction are measurements, lists are sets, all else are classes.

    Labels that one person would read alike are one class, and ``notes`` says so: blanks around them, letters composed
    in another way (Unicode's NFC and NFD), ``True`` and ``true``, and numbers that are equal (1, 1.0 and 01) where
    every label is a number.

    Args:
        labels: by split, as `read_labels` gives them; None where a split has none.
        tables: they are of.
        notes: what is found is added.
        wanted: what they are to be; None as they look.

    Raises:
        InputError: labels that are not what is wanted, or fewer than two classes.
    """
    bare = [part for part, column in labels.items() if column is None]
    if len(bare) == len(labels):
        return Encoded(None, None, dict.fromkeys(labels))
    if bare:
        raise InputError(
            f"--label-column: the {bare[0]} split has no column of labels: {tables[bare[0]].listed}"
        )
    known = {part: column or [] for part, column in labels.items()}
    source = next(iter(tables.values())).source
    several = isinstance(next(label for column in known.values() for label in column), list)
    if several != (wanted == SEVERAL) and wanted is not None:
        told = "lists of labels" if several else "one label each"
        remedy = (
            "--kind multi-label is for them" if several else "give a column of lists, or columns of 0 and 1"
        )
        raise InputError(f"--data {source}: its examples have {told}: {remedy}")
    if several:
        return _sets(known, source)
    numeric = all(as_number(name) is not None for column in known.values() for name in column)
    fractional = next((n for column in known.values() for n in column if numeric and _fraction(n)), None)
    if wanted == NUMBERS or (wanted is None and fractional is not None):
        return _numbers(known, source, notes, said=wanted is not None)
    if fractional is not None:
        raise InputError(
            f"--data {source}: labels such as {fractional} are measurements: --kind regression is for them; "
            "or choose a --label-column of classes"
        )
    as_names = _merged(known, notes)
    names = sorted({name for column in as_names.values() for name in column}, key=_order)
    if len(names) < 2:
        raise InputError(
            f"--data {source}: every example has the label {names[0]!r}; at least two classes are needed"
        )
    if numeric and len(names) > MANY:
        notes.append(
            f"{len(names)} whole numbers are labels, taken as classes: if they are a score, --kind regression"
        )
    index = {name: i for i, name in enumerate(names)}
    return Encoded(
        CLASSES, names, {part: [index[name] for name in column] for part, column in as_names.items()}
    )


def _numbers(known: Mapping[str, Labels], source: str, notes: list[str], *, said: bool) -> Encoded:
    columns: dict[str, Labels | None] = {}
    for part, column in known.items():
        numbers = [as_number(name) for name in column]
        for name, number in zip(column, numbers, strict=True):
            if number is None or not math.isfinite(number):
                raise InputError(
                    f"--data {source}: the label {name!r} is no number, as --kind regression needs"
                )
        columns[part] = numbers
    if len({number for column in columns.values() for number in column or ()}) < 2:
        raise InputError(
            f"--data {source}: every example has the same number for a label; nothing can be learnt"
        )
    if not said:
        notes.append("labels with a fraction are a score to be predicted: --kind regression says so")
    return Encoded(NUMBERS, None, columns)


def _sets(known: Mapping[str, Labels], source: str) -> Encoded:
    names = sorted({name for column in known.values() for label in column for name in label}, key=_order)
    if len(names) < 2:
        raise InputError(f"--data {source}: {len(names)} different labels; at least two are needed")
    return Encoded(
        SEVERAL,
        names,
        {
            part: [[int(name in label) for name in names] for label in column]
            for part, column in known.items()
        },
    )


def outnumbered(names: Sequence[str], labels: Sequence[int]) -> str:
    """That one class is far more frequent than another, in words; nothing where it is not."""
    counts = Counter(labels).most_common()
    (most, first), (least, last) = counts[0], counts[-1]
    if first < OUTNUMBERED * last:
        return ""
    return (
        f"not balanced: {first / len(labels):.0%} of the examples are {names[most]}, {last / len(labels):.0%} "
        f"{names[least]}; accuracy says little of the rare ones, --metric macro_f1 or mcc says more"
    )


def _merged(names: Mapping[str, list[str]], notes: list[str]) -> dict[str, list[str]]:
    """The labels, written in one way each."""
    written = Counter(name for column in names.values() for name in column)
    tidy = {name: " ".join(unicodedata.normalize("NFC", name).split()) for name in written}
    numeric = all(as_number(name) is not None for name in tidy.values())
    keys = {name: _key(word, numeric) for name, word in tidy.items()}
    ways: dict[str, list[str]] = {}
    for name in sorted(written, key=lambda name: (-written[name], name)):  # the commonest is what is shown
        ways.setdefault(keys[name], []).append(name)
    if several := [same for same in ways.values() if len(same) > 1]:
        shown = "; ".join(", ".join(map(repr, same)) for same in several[:5])
        notes.append(f"labels written in several ways are one class: {shown}")
    shown_as = keys if numeric else {name: tidy[ways[keys[name]][0]] for name in written}
    return {part: [shown_as[name] for name in column] for part, column in names.items()}


def _key(word: str, numeric: bool) -> str:
    """What labels have in common that are one class."""
    if word.lower() in ("true", "false"):
        return word.lower()
    number = as_number(word) if numeric else None
    if number is None:
        return word
    return str(int(number)) if number.is_integer() else repr(number)


def as_number(name: str) -> float | None:
    """The number that a text is; None where it is none."""
    try:
        return None if "_" in name else float(name)  # Python reads 1_0 as 10, nobody else does
    except ValueError:
        return None


def _fraction(name: str) -> bool:
    number = as_number(name)
    return number is not None and number % 1 != 0


def _order(name: str) -> tuple[bool, float, str]:
    number = as_number(name)
    return number is None, number or 0.0, name
