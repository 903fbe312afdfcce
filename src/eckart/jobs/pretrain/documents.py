"""The documents of a corpus of any size, read as a stream: files of text, rows of Parquet and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eckart.data.stdlib_source import stdlib_sources
from eckart.errors import InputError, first_line
from eckart.extras import require

BUILT_IN = "stdlib"
TEXT = (".txt", ".md", ".rst", ".py", ".jsonl", ".parquet")
PIECE, LEAST, PIECES = 2**20, 2**8, 400
"""Characters after which a text file is cut at a line end; where one file is all there is, at least so many, for so
many pieces."""


def documents(data: str, column: str = "text") -> Iterator[tuple[str, str | list[int]]]:
    """Name and text of every document, in a fixed order, one at a time.

    A text file is a document, or several where it is large or all there is: cut at line ends. A row of a Parquet or
    JSON-lines file is one. A column of lists holds token ids.

    Args:
        data: a directory or a file, or ``"stdlib"`` for the source of Python's standard library.
        column: of the text, in files that have columns.

    Raises:
        InputError: nothing to read, a file that is no UTF-8, a column that is missing, ids that are no whole numbers.
    """
    if data == BUILT_IN:
        yield from stdlib_sources()
        return
    root = Path(data)
    if not root.exists():
        raise InputError(f"--data {data}: no such file or directory")
    files = (
        [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix in TEXT and p.is_file())
    )
    if not files:
        raise InputError(f"--data {data}: no file there ends in {', '.join(TEXT)}")
    piece = PIECE if root.is_dir() else min(PIECE, max(LEAST, root.stat().st_size // PIECES))
    for path in files:
        name = path.name if path == root else path.relative_to(root).as_posix()
        for part, text in _read(path, column, piece):
            yield name + part, text


def _read(path: Path, column: str, piece: int) -> Iterator[tuple[str, str | list[int]]]:
    if path.suffix == ".parquet":
        yield from _parquet(path, column)
        return
    row = 0
    try:
        if path.suffix != ".jsonl":
            yield from _pieces(path, piece)
            return
        with path.open(encoding="utf-8") as lines:
            for row, line in enumerate(lines):
                if line.strip():
                    yield f"#{row}", _checked(json.loads(line)[column], f"{path}, row {row}")
    except UnicodeDecodeError:
        raise InputError(f"--data {path}: not UTF-8 text") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise InputError(f"--data {path}, row {row}: a line is no JSON object with {column!r}") from None


def _parquet(path: Path, column: str) -> Iterator[tuple[str, str | list[int]]]:
    reader = require("pyarrow.parquet", extra="compare").ParquetFile
    arrow = require("pyarrow", extra="compare")
    try:
        file = reader(path)
        if column not in file.schema_arrow.names:
            raise InputError(
                f"--column {column}: {path} has the columns {', '.join(file.schema_arrow.names)}"
            )
        row = 0
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            for value in batch.column(0).to_pylist():
                yield f"#{row}", _checked(value, f"{path}, row {row}")
                row += 1
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"--data {path}: no Parquet file, or a damaged one ({first_line(error)})") from None


def _pieces(path: Path, size: int) -> Iterator[tuple[str, str]]:
    """The text of a file, however large, in pieces that end with a line where lines are shorter; the first piece has
    the name of the file alone."""
    number, held, kept = 0, 0, list[str]()
    with path.open(encoding="utf-8") as file:
        while line := file.readline(size):
            kept.append(line)
            held += len(line)
            if held >= size:
                yield f"#{number}" if number else "", "".join(kept)
                number, held, kept = number + 1, 0, []
    if kept or not number:
        yield f"#{number}" if number else "", "".join(kept)


def _checked(value: Any, place: str) -> str | list[int]:
    """Text as it is, and ids as whole numbers; nothing is an empty text."""
    if value is None or isinstance(value, str):
        try:
            (value or "").encode()
        except UnicodeEncodeError as error:
            raise InputError(f"--data {place}: no text that UTF-8 can hold ({error.reason})") from None
        return value or ""
    if not isinstance(value, list):
        raise InputError(f"--data {place}: {str(value)[:20]} is neither text nor a list of token ids")
    for token in value:
        if isinstance(token, bool) or not isinstance(token, int | float) or token != token // 1 or token < 0:
            raise InputError(f"--data {place}: {token} is no token id; ids are whole numbers from 0 up")
    return [int(token) for token in value]
