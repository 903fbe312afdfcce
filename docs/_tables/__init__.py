"""What docs/evidence takes from the rows: for each page a file of its name, and its ``blocks`` stand between marks."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from _rows import Blocks

PAGES = sorted(
    path.stem.replace("_", "-") for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__"
)


def blocks(page: str) -> Blocks:
    """Mark → text of a page."""
    made: Blocks = import_module(f"_tables.{page.replace('-', '_')}").blocks()
    return made
