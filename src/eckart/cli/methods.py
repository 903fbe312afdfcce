"""`eckart methods`: the table of all methods."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from eckart import catalog
from eckart.cli.command import Answer
from eckart.cli.console import table
from eckart.cli.options import choices, option


def methods(
    family: Annotated[
        str | None,
        option(
            "NAME",
            f"Only methods of this family: {', '.join(catalog.ROOMS[:-1])} or {catalog.ROOMS[-1]}.",
            autocompletion=choices(lambda: catalog.ROOMS),
        ),
    ] = None,
) -> Answer:
    """List the methods: slug, name, family, source, the option that sets the size, and what a checkpoint holds.

    Example: `eckart methods --family adapters`
    """
    known = catalog.methods(family)
    rows = table("method", "name", "family", "source", "knob", "saves")
    for m in known:
        rows.add_row(m.slug, m.name, m.family, f"{m.paper} arXiv:{m.arxiv}", m.knob, m.saves)
    return Answer([dataclasses.asdict(method) for method in known], (rows,))
