"""Names and texts of other people in what is written: one function for each format of a file."""

from __future__ import annotations

import html as _html
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, ends of lines and changes of the direction of writing."""
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~$])")
_FORMULA = ("=", "+", "-", "@", "\t", "\n")
"""What a spreadsheet takes for the start of a formula."""


def one_line(text: object) -> str:
    """A text without ends of lines and control characters, for a terminal."""
    return _CONTROL.sub(lambda found: " " if found[0] in "\t\n\r" else f"\\x{ord(found[0]):02x}", str(text))


def markdown(text: object) -> str:
    """A text as it reads, anywhere in a line of Markdown: in a heading, in the cell of a table, between stars."""
    plain = " ".join(one_line(text).split()).replace("&", "&amp;")
    return _MARKDOWN.sub(lambda found: {"<": "&lt;", ">": "&gt;"}.get(found[0], f"\\{found[0]}"), plain)


def code(text: str) -> str:
    """Python's literal of a text, in a fenced block of Markdown; ``ascii`` shows what writes from right to left."""
    return repr(text) if _CONTROL.search(text) is None else ascii(text)


def shell(text: str) -> str:
    """A word of a command line of bash, in one line."""
    if not _CONTROL.search(text):
        return shlex.quote(text)
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted) + "'"


def html(text: object) -> str:
    """A text as it reads, in the body or a quoted attribute of an HTML page."""
    return _html.escape(str(text), quote=True)


def cell(value: Any) -> Any:
    """A value in a CSV file: a text that a spreadsheet would take for a formula begins with an apostrophe, and its
    lines end in one way, the one that every writer of CSV puts into quotes."""
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")
    if not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def cells(row: Iterable[Any]) -> list[Any]:
    """The values of a row of a CSV file."""
    return [cell(value) for value in row]


def named_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a row of a CSV file by column."""
    return {name: cell(value) for name, value in row.items()}


def frame(table: pd.DataFrame) -> pd.DataFrame:
    """A table that is to be a CSV file."""
    words = [name for name, kind in table.dtypes.items() if kind.kind not in "biufc"]
    return table.assign(**{str(name): table[name].map(cell) for name in words}) if words else table
