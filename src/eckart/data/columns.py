"""Which columns of a table are the input and the label, and what their cells may hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eckart.data.images import is_image
from eckart.data.labels import Labels, read_labels
from eckart.data.tables import Table, is_missing
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
SCORE = ("score", "scores", "rating", "ratings", "stars", "similarity", "grade")
"""Names of columns that are a label as often as they are none: which, is asked."""


def pick_columns(
    table: Table, text_column: str | None, label_column: str | None, labelled: bool | None
) -> tuple[Sequence[Any], Labels | None]:
    """Inputs (texts, pairs of texts, or images) and labels of a table, every cell checked.

    Raises:
        InputError: a column that is not there or cannot be told, a cell that is missing or of the wrong type.
    """
    label = () if labelled is False else label_columns(table, label_column, labelled)
    names = _input_columns(table, text_column, label)
    if not label and labelled is None:
        _refuse_score(table, names)
    labels = read_labels(table, label) if label else None
    if len(names) == 1 and is_image(table.columns[names[0]][0]):
        return _images(table, names[0]), labels
    columns = [_texts(table, name, keep_blank=not label) for name in names]
    if len(columns) == 1:
        texts = columns[0]
        return (texts if label else [text for text in texts if text.strip()] or texts[:1]), labels
    pairs = list(zip(*columns, strict=True))
    return (pairs if label else ["\n".join(pair) for pair in pairs]), labels


def choose_columns(
    table: Table, text_column: str | None, label_column: str | None, labelled: bool | None
) -> list[str]:
    """The names of the columns that `pick_columns` takes: of the input, then of the label if there is one.

    Raises:
        InputError: as `pick_columns`.
    """
    label = () if labelled is False else label_columns(table, label_column, labelled)
    return [*_input_columns(table, text_column, label), *label]


def label_columns(table: Table, wanted: str | None, labelled: bool | None) -> tuple[str, ...]:
    """The column of labels; several where there is one for each label; none where there are no labels."""
    if wanted is not None:
        names = [wanted] if wanted in table.columns else [part.strip() for part in wanted.split(",")]
        return tuple(existing(table, name, "--label-column") for name in names)
    lower = {column.lower(): column for column in reversed(table.columns)}
    found = next((lower[name] for name in LABEL if name in lower), None)
    if found is None and labelled:
        found = next((lower[name] for name in SCORE if name in lower), None)
    if found is None and labelled:
        raise InputError(
            f"--label-column: none of {', '.join(LABEL)} in {table.listed}; name the column of labels"
        )
    return () if found is None else (found,)


def _refuse_score(table: Table, inputs: Sequence[str]) -> None:
    found = next((name for name in table.columns if name.lower() in SCORE and name not in inputs), None)
    if found is not None:
        raise InputError(
            f"--data {table.source}: column {found} may be a label: say --label-column {found}, or --kind causal-lm "
            "for the text alone"
        )


def _input_columns(table: Table, wanted: str | None, label: Sequence[str]) -> tuple[str, ...]:
    if wanted is not None:
        names = (wanted,) if wanted in table.columns else tuple(part.strip() for part in wanted.split(","))
        if len(names) > 2:
            raise InputError(f"--text-column {wanted}: one column, or two joined by a comma for pairs")
        return tuple(existing(table, name, "--text-column") for name in names)
    lower = {column.lower(): column for column in table.columns if column not in label}
    for pair in PAIRS:
        if all(name in lower for name in pair):
            return tuple(lower[name] for name in pair)
    for name in IMAGE + TEXT:
        if name in lower:
            return (lower[name],)
    if len(lower) == 1:
        return tuple(lower.values())
    raise InputError(f"--text-column: cannot tell which column of {table.listed} is the text; name it")


def existing(table: Table, name: str, argument: str) -> str:
    """The name of a column that is there.

    Raises:
        InputError: it is not.
    """
    if name not in table.columns:
        raise InputError(f"{argument} {name} is not in {table.listed}")
    return name


def _texts(table: Table, name: str, *, keep_blank: bool) -> list[str]:
    texts = list(table.columns[name])
    for row, text in enumerate(texts, 1):
        where = f"--data {table.source}, row {row}, column {name}"
        if is_missing(text) or (not keep_blank and isinstance(text, str) and not text.strip()):
            raise InputError(f"{where}: the text is missing; fill it in or remove the row")
        if not isinstance(text, str):
            raise InputError(f"{where}: {text!r:.40} is not text; choose another --text-column")
    return texts


def _images(table: Table, name: str) -> Sequence[Any]:
    cells = table.columns[name]
    for row, cell in enumerate(cells, 1):
        if not is_image(cell):
            raise InputError(
                f"--data {table.source}, row {row}, column {name}: the image is missing; remove the row"
            )
    return cells
