"""A table of ratings from a file: user, item and rating, of which the first two are text whatever they look like."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.data.delimited import Format, read_delimited
from eckart.data.unpacked import read_parquet
from eckart.errors import InputError
from eckart.extras import require

if TYPE_CHECKING:
    import pandas as pd


def read_ratings(
    path: Path,
    sep: str | None = None,
    columns: str | None = None,
    encoding: str = "utf-8",
    *,
    implicit: bool = False,
) -> pd.DataFrame:
    """The columns user, item and rating of a file.

    Args:
        path: a text file of fields, or Parquet.
        sep: between the fields of a text file; see `Format`.
        columns: names of the columns where the file has no header, with commas.
        encoding: of a text file.
        implicit: a row stands for something seen, clicked or bought: without a rating it counts once.

    Raises:
        InputError: a file that cannot be read or lacks a column, a missing id, a rating that is no finite number.
    """
    pandas = require("pandas", extra="recovery")
    from eckart.recovery._forms import NAMES

    given = Format(sep, columns, encoding)
    if path.suffix.lower() == ".parquet":
        given.refuse(f"ratings {path}", "a Parquet file")
        table = read_parquet(path, "recovery", "ratings")
    else:
        table = read_delimited(path, given, "ratings")
    plain = {str(name).lower().replace("_", "").removesuffix("id").strip(): name for name in table}
    picked = [next((plain[name] for name in group if name in plain), None) for group in NAMES]
    if implicit and picked[2] is None and None not in picked[:2]:
        picked[2] = "rating"
        table = dict(table) | {"rating": [1.0] * len(next(iter(table.values())))}
    if None in picked:
        there = ", ".join(map(str, table))
        raise InputError(
            f"ratings {path} has columns {there}: name them user, item and rating, in the file or with --columns"
        )
    user, item, rating = (table[str(name)] for name in picked)
    if given.separator not in (None, ","):
        rating = _with_points(rating)
    numbers = [
        _number(value, f"ratings {path}, row {row}, column {picked[2]}")
        for row, value in enumerate(rating, 1)
    ]
    names = {
        kind: [
            _name(value, f"ratings {path}, row {row}, column {column}") for row, value in enumerate(cells, 1)
        ]
        for kind, column, cells in (("user", picked[0], user), ("item", picked[1], item))
    }
    return pandas.DataFrame({**names, "rating": numbers}).astype({"user": object, "item": object})


def _name(value: Any, where: str) -> str:
    """A user or an item as text; a number that is whole as its digits."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    if value is None or not text or (isinstance(value, float) and math.isnan(value)):
        raise InputError(f"{where}: the id is missing; fill it in or remove the row")
    return unicodedata.normalize("NFC", text)


_DECIMAL_COMMA, _THOUSANDS = re.compile(r"\s*[+-]?\d*,\d+\s*"), re.compile(r"\s*[+-]?\d{1,3},\d{3}\s*")


def _with_points(column: Sequence[Any]) -> Sequence[Any]:
    """Numbers with a decimal comma as ones with a point; as they are where a comma may stand between thousands."""
    with_comma = [cell for cell in column if "," in str(cell)]
    plain = not any("." in str(cell) for cell in column)
    if not plain or not all(_DECIMAL_COMMA.fullmatch(str(cell)) for cell in with_comma):
        return column
    if all(_THOUSANDS.fullmatch(str(cell)) for cell in with_comma):
        return column
    return [str(cell).replace(",", ".") for cell in column]


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        shown = "missing" if value in (None, "") else f"{value!r:.40}"
        hint = "" if "," not in shown else ", with a point for decimals and nothing between thousands,"
        raise InputError(f"{where}: the rating is {shown}; give a number{hint} or remove the row")
    return number
