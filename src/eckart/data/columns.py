"""Which columns of a table are the input and the label, and what their cells may hold."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from eckart.data.images import is_image
from eckart.data.tables import Table
from eckart.errors import InputError

TEXT = (
    "text",
    "sentence",
    "content",
    "document",
    "review",
    "question",
    "body",
    "message",
    "comment",
    "expression",
)
PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
         ("text1", "text2"), ("question", "answer"))  # fmt: skip
IMAGE = ("image", "img", "images", "picture")
LABEL = ("label", "labels", "target", "class", "category", "y")


def pick_columns(
    table: Table, text_column: str | None, label_column: str | None, labelled: bool | None
) -> tuple[Sequence[Any], list[str] | None]:
    """Inputs (texts, pairs of texts, or images) and labels of a table, every cell checked.

    Raises:
        InputError: a column that is not there or cannot be told, a cell that is missing or of the wrong type.
    """
    label = None if labelled is False else _label_column(table, label_column, labelled)
    names = _input_columns(table, text_column, label)
    labels = None if label is None else _labels(table, label)
    if len(names) == 1 and is_image(table.columns[names[0]][0]):
        return _images(table, names[0]), labels
    columns = [_texts(table, name, keep_blank=label is None) for name in names]
    if len(columns) == 1:
        texts = columns[0]
        return ([text for text in texts if text.strip()] or texts[:1] if label is None else texts), labels
    pairs = list(zip(*columns, strict=True))
    return (pairs if label is not None else ["\n".join(pair) for pair in pairs]), labels


def choose_columns(
    table: Table, text_column: str | None, label_column: str | None, labelled: bool | None
) -> list[str]:
    """The names of the columns that `pick_columns` takes: of the input, then of the label if there is one.

    Raises:
        InputError: as `pick_columns`.
    """
    label = None if labelled is False else _label_column(table, label_column, labelled)
    return [*_input_columns(table, text_column, label), *([] if label is None else [label])]


def _label_column(table: Table, wanted: str | None, labelled: bool | None) -> str | None:
    if wanted is not None:
        return _existing(table, wanted, "--label-column")
    found = next((name for name in LABEL for column in table.columns if column.lower() == name), None)
    if found is None and labelled:
        raise InputError(
            f"--label-column: none of {', '.join(LABEL)} in {_listed(table)}; name the column of labels"
        )
    return next((column for column in table.columns if column.lower() == found), None)


def _input_columns(table: Table, wanted: str | None, label: str | None) -> tuple[str, ...]:
    if wanted is not None:
        names = (wanted,) if wanted in table.columns else tuple(part.strip() for part in wanted.split(","))
        if len(names) > 2:
            raise InputError(f"--text-column {wanted}: one column, or two joined by a comma for pairs")
        return tuple(_existing(table, name, "--text-column") for name in names)
    lower = {column.lower(): column for column in table.columns if column != label}
    for pair in PAIRS:
        if all(name in lower for name in pair):
            return tuple(lower[name] for name in pair)
    for name in IMAGE + TEXT:
        if name in lower:
            return (lower[name],)
    if len(lower) == 1:
        return tuple(lower.values())
    raise InputError(f"--text-column: cannot tell which column of {_listed(table)} is the text; name it")


def _existing(table: Table, name: str, argument: str) -> str:
    if name not in table.columns:
        raise InputError(f"{argument} {name} is not in {_listed(table)}")
    return name


def _listed(table: Table) -> str:
    return f"{table.source} (its columns: {', '.join(table.columns)})"


def _texts(table: Table, name: str, *, keep_blank: bool) -> list[str]:
    texts = list(table.columns[name])
    for row, text in enumerate(texts, 1):
        where = f"--data {table.source}, row {row}, column {name}"
        if _is_missing(text) or (not keep_blank and isinstance(text, str) and not text.strip()):
            raise InputError(f"{where}: the text is missing; fill it in or remove the row")
        if not isinstance(text, str):
            raise InputError(f"{where}: {text!r:.40} is not text; choose another --text-column")
    return texts


def _labels(table: Table, name: str) -> list[str]:
    labels = []
    for row, value in enumerate(table.columns[name], 1):
        where = f"--data {table.source}, row {row}, column {name}"
        if _is_missing(value) or (isinstance(value, str) and value.strip().lower() in ("", "nan")):
            raise InputError(f"{where}: the label is missing; fill it in or remove the row")
        if isinstance(value, list | dict):
            raise InputError(
                f"{where}: the label {value!r:.40} is not one class (several labels are not supported)"
            )
        whole = isinstance(value, float) and value.is_integer()
        labels.append(str(int(value)) if whole else str(value))
    return labels


def _images(table: Table, name: str) -> Sequence[Any]:
    cells = table.columns[name]
    for row, cell in enumerate(cells, 1):
        if not is_image(cell):
            raise InputError(
                f"--data {table.source}, row {row}, column {name}: the image is missing; remove the row"
            )
    return cells


def encode_labels(
    labels: Mapping[str, list[str] | None], tables: Mapping[str, Table], notes: list[str]
) -> tuple[list[str] | None, dict[str, list[int] | None]]:
    """Names of the classes (numbers in their order, names in theirs) and the index of each example's class.

    Labels that one person would read alike are one class, and ``notes`` says so: blanks around them, letters composed
    in another way (Unicode's NFC and NFD), ``True`` and ``true``, and numbers that are equal (1, 1.0 and 01) where
    every label is a number.

    Raises:
        InputError: a number that is no class (regression), or fewer than two classes.
    """
    bare = [part for part, column in labels.items() if column is None]
    if len(bare) == len(labels):
        return None, dict.fromkeys(labels)
    if bare:
        raise InputError(
            f"--label-column: the {bare[0]} split has no column of labels: {_listed(tables[bare[0]])}"
        )
    as_names = _merged({part: column or [] for part, column in labels.items()}, notes)
    distinct = {name for column in as_names.values() for name in column}
    names = sorted(distinct, key=_order)
    source = next(iter(tables.values())).source
    fractional = next((name for name in names if (number := _number(name)) is not None and number % 1), None)
    if fractional is not None and all(_number(name) is not None for name in names):
        raise InputError(
            f"--data {source}: labels such as {fractional} are measurements, and regression is not supported; "
            "choose a --label-column of classes"
        )
    if len(names) < 2:
        raise InputError(
            f"--data {source}: every example has the label {names[0]!r}; at least two classes are needed"
        )
    index = {name: i for i, name in enumerate(names)}
    return names, {part: [index[name] for name in column] for part, column in as_names.items()}


def _merged(names: Mapping[str, list[str]], notes: list[str]) -> dict[str, list[str]]:
    """The labels, written in one way each."""
    written = Counter(name for column in names.values() for name in column)
    tidy = {name: " ".join(unicodedata.normalize("NFC", name).split()) for name in written}
    numeric = all(_number(name) is not None for name in tidy.values())
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
    number = _number(word) if numeric else None
    if number is None:
        return word
    return str(int(number)) if number.is_integer() else repr(number)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(name: str) -> float | None:
    try:
        return None if "_" in name else float(name)  # Python reads 1_0 as 10, nobody else does
    except ValueError:
        return None


def _order(name: str) -> tuple[bool, float, str]:
    number = _number(name)
    return number is None, number or 0.0, name
