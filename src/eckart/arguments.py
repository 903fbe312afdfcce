"""Checks of arguments that need no torch: the commands make them before anything is loaded, the jobs whoever calls."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable

from eckart.errors import InputError

PARAMETER_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
BYTE_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_BUDGET = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*(%|[a-z]*)\s*", re.IGNORECASE)

_FOREIGN = {
    *(
        "adalora",
        "boft",
        "c3a",
        "corda",
        "dora",
        "eva",
        "fourierft",
        "gralora",
        "hra",
        "ia3",
        "ln-tuning",
        "loftq",
    ),
    *(
        "loha",
        "lokr",
        "oft",
        "olora",
        "osf",
        "p-tuning",
        "pissa",
        "prefix-tuning",
        "prompt-tuning",
        "psoft",
        "pvera",
    ),
    *("qalora", "qlora", "road", "shira", "tinylora", "vblora", "vera", "waveft", "xlora"),
}
"""Methods that PEFT has and this library has not; many are a letter from one that it has."""


def hint(name: str, known: Iterable[str], otherwise: str | None = None, *, cutoff: float = 0.6) -> str:
    """The remedy for a name that is not known: the nearest that is, or else all of them.

    Args:
        name: what was given.
        known: what there is.
        otherwise: what to say where none is near; that these are known when None.
        cutoff: how near, from 0 (anything) to 1 (equal).
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else otherwise or f"known are {', '.join(names)}"


def method_hint(slug: str, known: Iterable[str]) -> str:
    """The remedy for an adapter method that is not known."""
    if slug in _FOREIGN:
        return "it is PEFT's own, so use PEFT for it."
    return hint(slug, known, "see `eckart methods --family adapters`.", cutoff=0.4)


def check_least(least: int, **numbers: int | None) -> None:
    """Refuse numbers below ``least``; None is whatever the job chooses.

    Raises:
        InputError: naming the argument.
    """
    for name, value in numbers.items():
        if value is not None and value < least:
            raise InputError(f"{name} is {value}: give at least {least}")


def check_positive(**numbers: float | None) -> None:
    """Refuse what is not positive and finite; None is whatever the job chooses.

    Raises:
        InputError: naming the argument.
    """
    for name, value in numbers.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} is {value}: give a positive number")


def check_share(name: str, value: float, *, zero: bool = False) -> None:
    """Refuse what is no share in (0, 1), or in [0, 1) where ``zero`` is one.

    Raises:
        InputError: naming the argument.
    """
    if not (0 < value < 1 or (zero and value == 0)):
        remedy = "in [0, 1)" if zero else "between 0 and 1, such as 0.9"
        raise InputError(f"{name} is {value}: give a share {remedy}")


def read_budget(budget: str | int) -> tuple[float, str]:
    """The number of a budget and its unit: ``"%"``, one of `PARAMETER_UNITS` or one of `BYTE_UNITS`.

    Raises:
        InputError: not a budget.
    """
    match = _BUDGET.fullmatch(str(budget))
    unit = match[2].lower() if match else None
    if match is None or unit not in {"%", *PARAMETER_UNITS, *BYTE_UNITS}:
        raise InputError(
            f"budget {str(budget)!r} is not understood: write 0.5%, 200k, 1.5M (parameters) or 1MB (bytes)"
        )
    return float(match[1]), unit
