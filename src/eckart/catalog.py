"""The table of all methods, gathered from the rooms that have some."""

from __future__ import annotations

from dataclasses import dataclass

from eckart import layers, metrics, recovery
from eckart.adapters import ADAPTERS
from eckart.errors import InputError


@dataclass(frozen=True)
class MethodInfo:
    """One row of `eckart.methods()`.

    Attributes:
        slug: the method's name on the command line.
        name: its name as its authors write it, or that of its estimator, layer or function.
        family: the room it lives in: ``"adapters"``, ``"layers"``, ``"metrics"`` or ``"recovery"``.
        paper: authors and year.
        arxiv: the arXiv id.
        knob: the option that sets its size.
        trains: what is trained or fitted.
        saves: what a checkpoint holds.
        summary: one line.
    """

    slug: str
    name: str
    family: str
    paper: str
    arxiv: str
    knob: str
    trains: str
    saves: str
    summary: str


def methods(family: str | None = None) -> list[MethodInfo]:
    """Every method, by family and slug.

    Args:
        family: keep only this family, such as ``"adapters"``.

    Raises:
        InputError: no method is of that family.
    """
    adapters = (
        MethodInfo(
            slug,
            config.title,
            config.family,
            config.paper,
            config.arxiv,
            config.knob,
            config.trains,
            config.saves,
            (config.__doc__ or "").strip().splitlines()[0],
        )
        for slug, config in ADAPTERS.items()
    )
    others = (MethodInfo(**method) for room in (layers, metrics, recovery) for method in room.METHODS)
    rows = sorted((*adapters, *others), key=lambda row: (row.family, row.slug))
    families = sorted({row.family for row in rows})
    if family is not None and family not in families:
        raise InputError(f"unknown family {family!r}: known are {', '.join(families)}")
    return [row for row in rows if family in (None, row.family)]
