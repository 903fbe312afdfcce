"""What a comparison spends where the caller does not say, and how times and sizes are written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from eckart.arguments import BYTE_UNITS
from eckart.errors import InputError

_TIME_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_MEASURE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([a-z×]*)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Preset:
    """What a comparison spends. A limit of None takes the whole split, a time of None all it needs."""

    steps: int
    seeds: int
    trials: int
    batch_size: int
    max_length: int
    validation: int | None
    test: int | None
    time: float | None

    def limits(self, given: Mapping[str, int] | None) -> dict[str, int]:
        """Most examples of a split: what is given, else its own."""
        sizes = {"validation": self.validation, "test": self.test, **(given or {})}
        return {split: size for split, size in sizes.items() if size is not None}


EMBEDDED = Preset(
    steps=44, seeds=5, trials=3, batch_size=16, max_length=48, validation=320, test=None, time=600.0
)
"""The data that comes with the library: ten minutes."""
QUICK = Preset(
    steps=16, seeds=1, trials=1, batch_size=16, max_length=48, validation=100, test=400, time=105.0
)
"""``quick``: under two minutes. The middle learning rate of each method, one seed."""
OWN = Preset(
    steps=400, seeds=5, trials=3, batch_size=16, max_length=128, validation=1000, test=None, time=None
)
"""Data of the caller's."""


def seconds(text: str | float) -> float:
    """A time such as ``"10m"``, ``"90s"``, ``"1.5h"`` or a number of seconds, in seconds.

    Raises:
        InputError: it is none, or not positive.
    """
    if not isinstance(text, str) and 0 < text < math.inf:
        return float(text)
    match = _MEASURE.fullmatch(str(text))
    if match is None or match[2].lower() not in _TIME_UNITS or not float(match[1]):
        raise InputError(f"time is {str(text)!r}: give one such as 90s, 10m or 2h")
    return float(match[1]) * _TIME_UNITS[match[2].lower()]


def limits_of_use(
    max_memory: str | float | None, max_bytes: str | float | None, max_step_time: str | float | None
) -> dict[str, float]:
    """The user's limits in the units of the board: megabytes, bytes, and × the frozen model's step.

    Raises:
        InputError: one is not understood.
    """
    found: dict[str, float] = {}
    for word, given in (("memory", max_memory), ("bytes", max_bytes)):
        if given is None:
            continue
        match = _MEASURE.fullmatch(str(given))
        unit = match[2].lower() or "b" if match else ""
        if match is None or unit not in BYTE_UNITS or not float(match[1]):
            raise InputError(f"max_{word} is {str(given)!r}: give a size such as 500MB or 2GiB")
        found[word] = float(match[1]) * BYTE_UNITS[unit] / (1e6 if word == "memory" else 1)
    if max_step_time is not None:
        match = _MEASURE.fullmatch(str(max_step_time))
        if match is None or match[2].lower() not in ("", "x", "×") or not float(match[1]):
            raise InputError(
                f"max_step_time is {str(max_step_time)!r}: give a multiple of the frozen model's step, such as 1.5"
            )
        found["step-time"] = float(match[1])
    return found
