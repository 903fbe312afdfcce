"""The top eigenvector of a stream in one pass: the error falls with the gap, whatever the number of heavy rows.

`StreamingPCA` with and without kept heavy rows, and Oja's rule at the best of its rates: 1 − cos² with the exact
vector over the gap R = σ₁²/σ₂² and over the number of heavy rows; and the bytes held between chunks. Ten seconds on one
core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from benchmarks._figure import line_chart
from benchmarks._fit import exponent
from benchmarks._harness import table
from eckart.recovery import StreamingPCA
from evidence._record import Rows

GAPS, COUNTS = (1.5, 2, 4, 8, 16, 32, 64), (5, 10, 20, 40, 80)
BLOCK, BARE, OJA = "block, heavy rows kept", "block, none kept", "Oja, best of its rates"
MISS = "1 - cos^2"
Fit = Callable[[np.ndarray, int], np.ndarray]
FITS: dict[str, Fit] = {
    BLOCK: lambda x, s: StreamingPCA(random_state=s).fit(x).components_[:1],
    BARE: lambda x, s: StreamingPCA(heavy_threshold=np.inf, random_state=s).fit(x).components_[:1],
    OJA: lambda x, s: StreamingPCA(method="oja-grid", random_state=s).fit(x).candidates_,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """It has no options."""


def light(n: int, d: int, gap: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) * np.r_[np.sqrt(gap), np.ones(d - 1)]


def hard(n: int, d: int, gap: float, heavy: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.zeros((n + heavy, d))
    rows[:n, 0] = np.sqrt(gap / n)
    rows[:n] += 1e-4 * rng.normal(size=(n, d))
    rows[n:, 0] = np.sqrt(gap / heavy)
    rows[np.arange(n, n + heavy), 1 + np.arange(heavy)] += 1
    return rng.permutation(rows)


def miss(make: Callable[[int], np.ndarray], fit: Fit) -> float:
    """Median over five streams of 1 − cos² with the exact vector, of the best vector that a fit offers."""
    scores = []
    for seed in range(5):
        rows = make(seed)
        top = np.linalg.eigh(rows.T @ rows)[1][:, -1]
        scores.append(min(max(1 - float(v @ top) ** 2, 1e-16) for v in fit(rows, seed)))
    return float(np.median(scores))


def held() -> Rows:
    """Bytes that the estimator holds after so many rows."""
    found = []
    for n in (2_000, 8_000, 32_000, 128_000):
        pca = StreamingPCA(random_state=0, n_samples=n, max_heavy=64, heavy_factor=50)
        for seed in range(n // 1_000):
            pca.partial_fit(light(1_000, 100, 4.0, seed))
        size = sum(value.nbytes for value in vars(pca._state).values() if hasattr(value, "nbytes"))
        found.append({"part": "memory", "rows": n, "bytes": size})
    return found


def run(_: argparse.Namespace) -> Rows:
    """Measure all parts and draw the first two."""
    by_gap: Rows = [
        {
            "part": "gap",
            "arm": arm,
            "gap": gap,
            MISS: miss(lambda s, r=gap: light(10_000, 50, r, s), FITS[arm]),
        }
        for arm in (BLOCK, OJA)
        for gap in GAPS
    ]
    by_heavy: Rows = [
        {"part": "heavy", "arm": arm, "heavy": h, MISS: miss(lambda s, h=h: hard(2_000, 200, 2.0, h, s), fit)}
        for arm, fit in FITS.items()
        for h in COUNTS
    ]
    tail = [(r["gap"], r[MISS]) for r in by_gap if r["arm"] == BLOCK and r["gap"] >= 2]
    slope: Rows = [{"part": "exponent", "exponent": exponent(*zip(*tail, strict=True))}]
    series = {arm: [(r["gap"], r[MISS]) for r in by_gap if r["arm"] == arm] for arm in (BLOCK, OJA)}
    line_chart(
        "streaming-gap",
        "1 − cos² against the gap R = σ₁²/σ₂² (Gaussian rows, d = 50, n = 10,000)",
        "R",
        "1 − cos²",
        {**series, "1/R": [(gap, 1 / gap) for gap in GAPS]},
        log_x=True,
    )
    line_chart(
        "streaming-heavy",
        "1 − cos² against the number of heavy rows (hard instance, d = 200)",
        "heavy rows",
        "1 − cos²",
        {arm: [(r["heavy"], r[MISS]) for r in by_heavy if r["arm"] == arm] for arm in FITS},
        log_x=True,
    )
    parts = (by_gap, slope, by_heavy, held())
    for part in parts:
        table(part)
    return [row for part in parts for row in part]
