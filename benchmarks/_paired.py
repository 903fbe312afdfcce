"""Two models on the same texts: how far they are apart, and what one keeps of the other's score, with intervals."""

from __future__ import annotations

import numpy as np

from eckart.jobs.compare.paired import Scores

Told = tuple[float, float, float]
"""A value and its interval of 95 %."""


def gap(own: np.ndarray, other: np.ndarray) -> Told:
    """The mean of own less other, paired by text."""
    both = np.stack([own, other])
    found = Scores(
        both.mean(1, keepdims=True), {(0, 0): own, (1, 0): other}, np.zeros(len(both)), fixed=(0, 1)
    ).difference(0, 1)
    assert found is not None
    return found.value, found.low, found.high


def share(own: np.ndarray, other: np.ndarray) -> Told:
    """The ratio θ of the two means; its interval is that of the mean of (own − θ other) over the mean of other."""
    value = float(own.mean() / other.mean())
    _, low, high = gap(own / other.mean(), value * other / other.mean())
    return value, value + low, value + high


def told(name: str, found: Told | None) -> dict[str, float | None]:
    """As columns of a row; empty where nothing was compared."""
    names = (name, f"{name}_low", f"{name}_high")
    return dict.fromkeys(names) if found is None else dict(zip(names, map(float, found), strict=True))
