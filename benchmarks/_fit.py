"""One number fitted to a course of measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """e of y ~ x^e: the slope of log y on log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
