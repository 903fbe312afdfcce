"""Text files of fields, such as CSV: how they are written, and their columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eckart.data.unpacked import endings, open_text
from eckart.errors import InputError


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
    def fields(self) -> bool:
        """Whether it says that a file is one of fields, whatever the file is called."""
        return self.sep is not None or self.columns is not None

    def refuse(self, source: object, what: str) -> None:
        """Refuse what was said of a source that is no such file.

        Raises:
            InputError: something was said.
        """
        if self != AS_ENDING:
            raise InputError(
                f"--sep, --columns and --encoding are for text files, and {source} is {what}: leave them out"
            )

    @property
    def names(self) -> list[str] | None:
        return None if self.columns is None else [name.strip() for name in self.columns.split(",")]

    @property
    def separator(self) -> str | None:
        return {"tab": "\t", "\\t": "\t"}.get(self.sep or "", self.sep)


AS_ENDING = Format()
"""As the ending of the file says."""


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
        header = form.names or [name.strip() for name in lines[0][1]]
        body = lines if form.names else lines[1:]
        if len(header) == 1 and (found := set(header[0]) & set(";\t|,")):
            raise InputError(
                f"--data {path}, line {lines[0][0]}: the header is one field, {header[0]!r:.60}: name what stands "
                f"between its fields, such as --sep {_shown(min(found))}"
            )
        for number, row in body:
            if len(row) != len(header):
                raise InputError(
                    f"--data {path}, line {number}: {len(row)} fields where "
                    f"{'--columns names' if form.names else 'the header has'} {len(header)} "
                    f"(another --sep than {_shown(separator)}, a truncated file, or a field that needs quotes)"
                )
    except InputError as error:
        raise InputError(str(error).replace("--data", argument, 1)) from None
    if len(set(header)) < len(header):
        raise InputError(f"{argument} {path}: the header names a column twice: {', '.join(header)}")
    return {name: [row[i] for _, row in body] for i, name in enumerate(header)}


def _shown(separator: str) -> str:
    """A separator as it is written on a command line."""
    return "tab" if separator == "\t" else f"{separator!r}"


def _fields(path: Path, separator: str, encoding: str) -> list[tuple[int, list[str]]]:
    """The fields of every line that is not blank, with its number."""
    csv.field_size_limit(2**31 - 1)
    with open_text(path, encoding) as file:
        if len(separator) > 1 or separator == "\t":  # no quotes: a field simply has no such thing in it
            rows = (
                (n, line.rstrip("\r\n").split(separator))
                for n, line in enumerate(file, 1)
                if line.strip("\r\n")
            )
            return list(rows)
        reader = csv.reader(file, strict=True, delimiter=separator)
        try:
            return [(reader.line_num, row) for row in reader if row]
        except csv.Error as error:
            raise InputError(f"--data {path}, line {reader.line_num}: {error} (truncated file?)") from None
