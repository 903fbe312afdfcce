"""Where the rows and the figures of a claim are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks._harness import save

Rows = list[dict[str, Any]]
RESULTS = Path(__file__).resolve().parent / "results"


def kept(slug: str) -> Rows:
    """The rows of an earlier run; none when there was none."""
    path = RESULTS / f"{slug}.json"
    return json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else []


def keep(slug: str, rows: Rows) -> None:
    """Write the rows of a claim beside the machine they were measured on."""
    save(slug, rows, RESULTS)
