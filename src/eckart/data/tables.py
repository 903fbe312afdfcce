"""Table and text files read into columns: CSV, TSV, JSON, JSON lines, Parquet, plain text, each also inside gzip.

What is in a file is checked against its ending before anything is parsed, and every complaint names the file and,
where there is one, the line. Rows are counted from 1, the header not included.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from eckart.errors import InputError, first_line
from eckart.extras import require

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


def endings(path: Path) -> tuple[str, bool]:
    """The ending that tells the format, and whether gzip is around it: ``a.csv.gz`` gives (".csv", True)."""
    compressed = path.suffix.lower() == ".gz"
    inner = path.with_suffix("") if compressed else path
    return inner.suffix.lower() or (".txt" if compressed else ""), compressed


def is_table(path: Path) -> bool:
    """Whether the ending is one that `read_table` reads."""
    ending, compressed = endings(path)
    return ending in READERS and not (compressed and ending == ".parquet")


def read_table(path: Path) -> Table:
    """Read one file by its ending.

    Raises:
        InputError: unknown ending, content that is not what the ending says, a truncated or malformed file.
    """
    if not is_table(path):
        raise InputError(
            f"--data {path}: files with this ending are not read; known are {', '.join(sorted(READERS))} "
            "(those of text also as .gz) and .npz"
        )
    check_content(path)
    columns = READERS[endings(path)[0]](path)
    return Table(columns, str(path))


def check_content(path: Path) -> None:
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
    if found is None and expected is None and b"\0" in head:
        found = "binary data"
    if found is None and ending in (".csv", ".tsv") and head.lstrip()[:1] in (b"{", b"["):
        found = "JSON"
    if found != expected:
        raise InputError(
            f"--data {path} is not what its ending says: it holds {found or f'something else than {expected}'}; "
            "give the file its right ending or export it again"
        )


@contextmanager
def open_text(path: Path, encoding: str = "utf-8") -> Iterator[TextIO]:
    """Open a file of text, plain or gzip; damage met while reading becomes an `InputError`."""
    utf8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    try:
        opener: Callable[..., Any] = gzip.open if endings(path)[1] else open
        with opener(path, "rt", encoding="utf-8-sig" if utf8 else encoding, newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        shown = "UTF-8" if utf8 else encoding
        raise InputError(f"--data {path} is not {shown} text ({error.reason}): convert it to UTF-8") from None
    except OSError as error:
        if error.strerror is None:  # gzip's own
            raise InputError(
                f"--data {path} is truncated or damaged gzip: copy or compress it again"
            ) from None
        raise InputError(f"--data {path} cannot be read: {error.strerror}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InputError(f"--data {path} is truncated or damaged gzip: copy or compress it again") from None


@dataclass(frozen=True)
class Format:
    """How a text file of fields is written, where its ending does not tell.

    Args:
        sep: between the fields, ``"tab"`` for a tab; the ending's own when None.
        columns: names of the columns with commas, where the file has no header.
        encoding: of its text, such as ``"latin-1"``.

    Raises:
        InputError: no separator, a name that is empty or twice there, an encoding that Python lacks.
    """

    sep: str | None = None
    columns: str | None = None
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if self.sep is not None and (not self.sep or set(self.sep) & set('\r\n\0"')):
            raise InputError(f"--sep is {self.sep!r}: give what stands between two fields, such as ; or tab")
        names = self.names
        if names is not None and (not all(names) or len(set(names)) < len(names)):
            raise InputError(
                f"--columns {self.columns!r}: give a name for each column, with commas, each once"
            )
        try:
            io.TextIOWrapper(io.BytesIO(), encoding=self.encoding)
        except (LookupError, ValueError):
            raise InputError(
                f"--encoding {self.encoding!r} is not known: give one such as utf-8 or latin-1"
            ) from None

    @property
    def names(self) -> list[str] | None:
        return None if self.columns is None else [name.strip() for name in self.columns.split(",")]

    @property
    def separator(self) -> str | None:
        return {"tab": "\t", "\\t": "\t"}.get(self.sep or "", self.sep)


def read_delimited(path: Path, form: Format, argument: str = "--data") -> dict[str, Sequence[Any]]:
    """The columns of a text file of fields, all cells text.

    Raises:
        InputError: damage, by line, or fewer fields than the header has.
    """
    separator = form.separator or ("\t" if endings(path)[0] == ".tsv" else ",")
    try:
        lines = _fields(path, separator, form.encoding)
        if not lines:
            raise InputError(f"--data {path} is empty")
        header, body = (form.names, lines) if form.names else (lines[0][1], lines[1:])
        for number, row in body:
            if len(row) != len(header):
                raise InputError(
                    f"--data {path}, line {number}: {len(row)} fields where "
                    f"{'--columns names' if form.names else 'the header has'} {len(header)} "
                    f"(another --sep than {separator!r}, a truncated file, or a field that needs quotes)"
                )
    except InputError as error:
        raise InputError(str(error).replace("--data", argument, 1)) from None
    if len(set(header)) < len(header):
        raise InputError(f"{argument} {path}: the header names a column twice: {', '.join(header)}")
    return {name.strip(): [row[i] for _, row in body] for i, name in enumerate(header)}


def _fields(path: Path, separator: str, encoding: str) -> list[tuple[int, list[str]]]:
    """The fields of every line that is not blank, with its number."""
    csv.field_size_limit(2**31 - 1)
    with open_text(path, encoding) as file:
        if len(separator) > 1 or separator == "\t":  # no quotes: a field simply has no such thing in it
            rows = (
                (n, line.rstrip("\r\n").split(separator)) for n, line in enumerate(file, 1) if line.strip()
            )
            return list(rows)
        reader = csv.reader(file, strict=True, delimiter=separator)
        try:
            return [(reader.line_num, row) for row in reader if row]
        except csv.Error as error:
            raise InputError(f"--data {path}, line {reader.line_num}: {error} (truncated file?)") from None


def _delimited(path: Path, **dialect: Any) -> dict[str, Sequence[Any]]:
    csv.field_size_limit(2**31 - 1)
    with open_text(path) as file:
        reader = csv.reader(file, strict=True, **dialect)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise InputError(f"--data {path}: the header names a column twice: {', '.join(header)}")
            rows = []
            for row in reader:
                if row and len(row) != len(header):
                    raise InputError(
                        f"--data {path}, line {reader.line_num}: {len(row)} fields where the header has {len(header)} "
                        "(truncated file, or a field that needs quotes)"
                    )
                if row:
                    rows.append(row)
        except csv.Error as error:
            raise InputError(f"--data {path}, line {reader.line_num}: {error} (truncated file?)") from None
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _csv(path: Path) -> dict[str, Sequence[Any]]:
    return _delimited(path)


def _tsv(path: Path) -> dict[str, Sequence[Any]]:
    """Tab-separated values know no quotes: a field simply has no tab and no line end in it."""
    return _delimited(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _json_lines(path: Path) -> dict[str, Sequence[Any]]:
    rows = []
    with open_text(path) as file:
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


def _json(path: Path) -> dict[str, Sequence[Any]]:
    with open_text(path) as file:
        content = file.read()
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _json_lines(path)
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


def _parquet(path: Path) -> dict[str, Sequence[Any]]:
    parquet = require("pyarrow.parquet", extra="compare")
    with path.open("rb") as file:
        file.seek(-4, 2)
        if file.read() != b"PAR1":
            raise InputError(f"--data {path} is a truncated Parquet file: copy or export it again")
    try:
        columns: dict[str, Sequence[Any]] = parquet.read_table(path).to_pydict()
    except (OSError, ValueError) as error:
        raise InputError(f"--data {path} is a damaged Parquet file: {first_line(error)}") from None
    return columns


def _text(path: Path) -> dict[str, Sequence[Any]]:
    with open_text(path) as file:
        return {"text": [file.read().replace("\r\n", "\n")]}


READERS: dict[str, Callable[[Path], dict[str, Sequence[Any]]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".txt": _text,
}
