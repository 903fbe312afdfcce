"""Checks of the options of a parameter group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from eckart.errors import InputError

BOUNDS: dict[str, tuple[float, float]] = {
    "lr": (0, math.inf),
    "weight_decay": (0, math.inf),
    "eps": (0, math.inf),
    "rank_ratio": (0, 1),
    "momentum": (0, 1),
    "adamw_scale": (0, math.inf),
}
COUNTS = ("rank", "update_gap", "max_shape", "ns_steps")
CHOICES: dict[str, tuple[Any, ...]] = {
    "basis": ("dct2", "dct3", "random_qr"),
    "transform": ("auto", "matmul", "fft"),
    "norm": (1, 2),
    "error_feedback": (None, "full", "int8"),
    "scale": ("kj", "none", "kimi", "dion"),
}
STRUCTURE = ("low_rank", "rank", "rank_ratio", "basis", "error_feedback", "max_shape")
"""Options that decide what the state holds and means."""


def check_options(group: Mapping[str, Any]) -> None:
    """Refuse what no update could use.

    Raises:
        InputError: an option out of its range, both or neither of ``rank`` and ``rank_ratio``.
    """
    for name, (low, high) in BOUNDS.items():
        value = group.get(name)
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            raise InputError(f"{name}={value}: give a number from {low} to {high}")
    if not (len(group["betas"]) == 2 and all(0 <= beta < 1 for beta in group["betas"])):
        raise InputError(f"betas={tuple(group['betas'])}: give two numbers in [0, 1)")
    for name in COUNTS:
        value = group.get(name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InputError(f"{name}={value!r}: give a whole number from 1 up")
    for name, known in CHOICES.items():
        if name in group and group[name] not in known:
            raise InputError(f"{name}={group[name]!r}: choose one of {', '.join(map(str, known))}")
    if group.get("basis") == "random_qr" and group["transform"] == "fft":
        raise InputError(
            "transform='fft' with basis='random_qr': only the cosine bases have a fast transform"
        )
    if group["rank_ratio"] == 0:
        raise InputError("rank_ratio=0: give a share above 0")
    if group["low_rank"] and (group["rank"] is None) == (group["rank_ratio"] is None):
        raise InputError(f"rank={group['rank']} and rank_ratio={group['rank_ratio']}: give one of the two")
