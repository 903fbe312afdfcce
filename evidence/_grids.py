"""The search on a grid that the claims tune their options by."""

from __future__ import annotations

from collections.abc import Callable


def least(loss: Callable[[int], float], start: int = 0, most: int = 7) -> int:
    """The place on a grid whose loss no neighbour's is below, found by steps downhill.

    Args:
        loss: of a place; asked for once.
        start: where the search begins.
        most: places that are tried, about: from there on no further step is made.
    """
    tried: dict[int, float] = {}

    def judged(i: int) -> float:
        if i not in tried:
            tried[i] = loss(i)
        return tried[i]

    best = start
    while (better := min((best, best - 1, best + 1), key=judged)) != best and len(tried) < most:
        best = better
    return best
