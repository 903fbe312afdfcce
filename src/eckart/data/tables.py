"""Table and text files read into columns: CSV, TSV, JSON, JSON lines, Parquet, plain text, each also inside gzip.

What is in a file is checked against its ending before anything is parsed, and every complaint names the file and,
where there is one, the line. Rows are counted from 1, the header not included.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eckart.data.delimited import AS_ENDING, Format, read_delimited
from eckart.data.unpacked import endings, open_text, read_parquet
from eckart.errors import InputError

SIGNATURES = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a ZIP or .npz archive",
    b"\x1f\x8b": "a gzip archive",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF document",
    b"SQLite format 3": "an SQLite database",
    b"\x80\x04\x95": "a pickle",
}
EXPECTED = {".parquet": "a Parquet file", ".npz": "a ZIP or .npz archive", ".gz": "a gzip archive"}


@dataclass(frozen=True)
class Table:
    """Columns of equal length, and the file they came from (for messages)."""

    columns: dict[str, Sequence[Any]]
    source: str

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def listed(self) -> str:
        """The file with its columns, for messages."""
        return f"{self.source} (its columns: {', '.join(self.columns)})"


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_table(path: Path, form: Format = AS_ENDING) -> bool:
    """Whether `read_table` reads a file with this ending, or any with fields between which a known thing stands."""
    ending, compressed = endings(path)
    return form.fields or (ending in READERS and not (compressed and ending == ".parquet"))


def read_table(path: Path, form: Format = AS_ENDING) -> Table:
    """Read one file by its ending; one of any other ending as fields, where ``form`` says how they are written.

    Raises:
        InputError: unknown ending, content that is not what the ending says, a truncated or malformed file, a form that
            such files do not have.
    """
    if not is_table(path, form):
        raise InputError(
            f"--data {path}: files with this ending are not read; known are {', '.join(sorted(READERS))} "
            "(those of text also as .gz) and .npz; a file of fields is, with --sep"
        )
    ending = endings(path)[0]
    if ending == ".parquet" or (ending in (".json", ".jsonl") and form.fields):
        form.refuse(path, f"a {ending} file")
    check_content(path, form.encoding)
    reader = read_delimited if form.fields else READERS[ending]
    return Table(reader(path, form), str(path))


def check_content(path: Path, encoding: str = "utf-8") -> None:
    """Refuse an empty file and one whose first bytes contradict its ending."""
    try:
        with path.open("rb") as file:
            head = file.read(8192)
    except OSError as error:
        raise InputError(f"--data {path} cannot be read: {error.strerror}") from None
    if not head:
        raise InputError(f"--data {path} is empty (0 bytes)")
    ending = path.suffix.lower()
    found = next((name for magic, name in SIGNATURES.items() if head.startswith(magic)), None)
    expected = EXPECTED.get(ending)
    wide = encoding.lower().startswith(("utf-16", "utf16", "utf_16", "utf-32", "utf32", "utf_32"))
    if found is None and expected is None and b"\0" in head and not wide:
        found = "binary data"
    if found is None and ending in (".csv", ".tsv") and head.lstrip()[:1] in (b"{", b"["):
        found = "JSON"
    if found != expected:
        raise InputError(
            f"--data {path} is not what its ending says: it holds {found or f'something else than {expected}'}; "
            "give the file its right ending or export it again"
        )


def _json_lines(path: Path, form: Format) -> dict[str, Sequence[Any]]:
    rows = []
    with open_text(path, form.encoding) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"--data {path}, line {number} is not JSON: {error.msg} (truncated or not JSON lines?)"
                ) from None
            if not isinstance(row, dict):
                raise InputError(
                    f"--data {path}, line {number} is {row!r:.40}, not an object with named fields"
                )
            rows.append(row)
    return _records(rows)


def _json(path: Path, form: Format) -> dict[str, Sequence[Any]]:
    with open_text(path, form.encoding) as file:
        content = file.read()
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _json_lines(path, form)
        raise InputError(
            f"--data {path}, line {error.lineno} is not JSON: {error.msg} (truncated file?)"
        ) from None
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        return _records(value)
    columns = list(value.values()) if isinstance(value, dict) else []
    if columns and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return dict(value)
    raise InputError(f"--data {path} must hold a list of objects, or an object of columns of equal length")


def _records(rows: list[dict[str, Any]]) -> dict[str, Sequence[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _text(path: Path, form: Format) -> dict[str, Sequence[Any]]:
    with open_text(path, form.encoding) as file:
        return {"text": [file.read().replace("\r\n", "\n")]}


def _parquet(path: Path, form: Format) -> dict[str, Sequence[Any]]:
    return read_parquet(path, extra="compare")


READERS: dict[str, Callable[[Path, Format], dict[str, Sequence[Any]]]] = {
    ".csv": read_delimited,
    ".tsv": read_delimited,
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".txt": _text,
}
