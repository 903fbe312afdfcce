"""95% confidence intervals: of one score over test examples, and of a mean over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from eckart.errors import InputError
from eckart.extras import require

Z95 = 1.959963984540054
"""The two-sided 95% point of the normal distribution."""


def interval(
    scores: Float[np.ndarray, " n"], groups: Sequence[str] | None = None
) -> tuple[float, float, float]:
    """Mean score with its 95 % confidence interval over the examples.

    For scores that are all 0 or 1 Wilson's interval, (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n), by SciPy;
    otherwise the normal one, x̄ ± z s/√n. Only the draw of the test examples is covered, not that of the seed.
    Where examples come in groups, groups are what is drawn: x̄ ± t √(`cluster_variance`).

    Args:
        scores: of the examples, such as `Task.scores` gives.
        groups: where each example comes from, such as a file; None where each stands for itself.

    Returns:
        Mean, lower and upper end; all NaN when a score is NaN.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    n = len(scores)
    if not n:
        raise InputError("scores: an interval needs at least one example")
    mean = float(np.mean(scores))
    if groups is not None and (count := len(set(groups))) > 1:
        student = require("scipy.stats", extra="compare").t
        spread = math.sqrt(cluster_variance(scores, np.unique(groups, return_inverse=True)[1]))
        half = float(student.ppf(0.975, count - 1)) * spread
        return mean, mean - half, mean + half
    if np.isin(scores, (0, 1)).all():
        test = require("scipy.stats", extra="compare").binomtest(int(np.sum(scores)), n)
        low, high = test.proportion_ci(0.95, method="wilson")
        return mean, float(low), float(high)
    half = Z95 * float(np.std(scores, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return mean, mean - half, mean + half


def cluster_variance(values: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> float:
    """Variance of a mean whose examples come in G groups: G/(G−1) Σ_g (Σ_{i∈g} (x_i − x̄))² / n².

    Args:
        values: of the examples.
        groups: the number of each one's group, from 0.
    """
    sums = np.bincount(groups, values - values.mean())
    count = len(sums)
    return float(count / (count - 1) * (sums**2).sum()) / len(values) ** 2


def combined_interval(
    scores: Sequence[float], lows: Sequence[float], highs: Sequence[float]
) -> tuple[float, float]:
    """95% interval of a mean over seeds that share one test split.

    mean ± t_ν √(e² + s²/K), with e = (mean distance from a run's score to the end of its own interval) / 1.96,
    s the standard deviation between the K seeds, and ν = (e² + s²/K)² / ((s²/K)² / (K − 1)) (Welch–Satterthwaite).
    The seeds are scored on the same examples, so e is not divided by √K. With one seed it is the run's own interval.

    Args:
        scores: the score of each seed, K numbers.
        lows: lower ends of their 95% intervals over test examples.
        highs: upper ends of the same.
    """
    student = require("scipy.stats", extra="compare").t
    values = np.asarray(scores, dtype=float)
    count = len(values)
    spread = float(values.var(ddof=1)) / count if count > 1 else 0.0

    def half_width(distances: np.ndarray) -> float:
        variance = (float(distances.mean()) / Z95) ** 2 + spread
        degrees = variance**2 * (count - 1) / spread**2 if spread > 0 else math.inf
        return float(student.ppf(0.975, degrees)) * math.sqrt(variance)

    mean = float(values.mean())
    return mean - half_width(values - np.asarray(lows)), mean + half_width(np.asarray(highs) - values)
