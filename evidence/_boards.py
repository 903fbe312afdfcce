"""The board of a comparison as rows: every arm, who was dropped and why, and what the page says."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._harness import table
from eckart.jobs.compare.advice import sentences
from eckart.jobs.compare.examples import read_examples
from eckart.jobs.compare.judgement import judge
from eckart.jobs.compare.reading import read_results, read_study, read_terms
from evidence._record import Rows


def plain(value: Any) -> Any:
    """A value of a table as JSON has it."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def board(directory: Path, columns: Sequence[str], also: Sequence[str] = ()) -> Rows:
    """The rows of a comparison that has ended; the board is printed.

    Args:
        directory: of its results.
        columns: of the board that are kept.
        also: scores beside the one that decides that are kept.
    """
    terms = read_terms(read_study(directory / "compare.json"))
    judgement = judge(read_results(directory), read_examples(directory / "examples.parquet"), terms)
    rows = [
        {name: plain(row[name]) for name in columns}
        | {name: json.loads(row["also"]).get(name) for name in also}
        for row in judgement.board.to_dict("records")
    ]
    table([row for row in rows if row["score"] is not None])
    dropped = [{"method": name, "dropped": why} for name, why in terms.dropped.items()]
    return [*rows, *dropped, {"advice": sentences(judgement)}]
