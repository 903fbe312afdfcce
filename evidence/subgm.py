"""Robust recovery of an over-estimated rank: the error stays at its floor up to half gross outliers.

`RobustLowRank` on 1,500 Gaussian measurements of a 20 × 20 matrix of rank 3, a share of them off by N(0, 10²): the ℓ1
loss at three sizes of the factor against the square loss, and the floor over the size of the start. Fifteen seconds on
one core.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks._figure import line_chart
from benchmarks._harness import table
from eckart.recovery import RobustLowRank
from evidence._problems import low_rank
from evidence._record import Rows

D, R, MEASUREMENTS = 20, 3, 1500
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
ROBUST: dict[str, Any] = {"eta0": 0.2, "decay": 0.985, "alpha": 1e-4, "max_iter": 900, "norm": "fro"}
ARMS: dict[str, dict[str, Any]] = {f"ℓ1, r′ = {k}": {"rank": k, **ROBUST} for k in (R, 2 * R, D)}
ARMS["ℓ2, r′ = 20"] = {
    "rank": D,
    "loss": "l2",
    "step": "constant",
    "eta0": 0.1,
    "alpha": 0.1,
    "tol": 1e-6,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """It has no options."""


def run(_: argparse.Namespace) -> Rows:
    """Measure both parts and draw them."""
    X = low_rank(D, D, np.ones(R), symmetric=True)
    A = np.random.default_rng(1).normal(size=(MEASUREMENTS, D, D))
    clean = np.einsum("mij,ij->m", A, X)

    def error(share: float, seed: int, **options: Any) -> float:
        rng = np.random.default_rng(seed)
        y = clean + np.where(rng.random(MEASUREMENTS) < share, rng.normal(0, 10, MEASUREMENTS), 0)
        found = RobustLowRank(scale=1.0, **options).fit(A, y).matrix_
        return float(np.linalg.norm(found - X) / np.linalg.norm(X))

    outliers: Rows = [
        {
            "arm": arm,
            "outliers": p,
            "error": float(np.median([error(p, seed, **options) for seed in range(3)])),
        }
        for arm, options in ARMS.items()
        for p in SHARES
    ]
    start = ROBUST | {"rank": D, "decay": 0.99, "max_iter": 1500}
    starts: Rows = [
        {"alpha": alpha, "error": error(0.3, 0, **start | {"alpha": alpha})}
        for alpha in (0.1, 0.01, 1e-3, 1e-4)
    ]
    line_chart(
        "subgm-corruption",
        "Relative error against the share of gross outliers (rank 3)",
        "share of measurements with an outlier",
        "relative Frobenius error",
        {arm: [(r["outliers"], r["error"]) for r in outliers if r["arm"] == arm] for arm in ARMS},
    )
    line_chart(
        "subgm-start",
        "The floor of the error follows the size of the start (30 % outliers, r′ = 20)",
        "α",
        "relative Frobenius error",
        {"ℓ1, r′ = 20": [(r["alpha"], r["error"]) for r in starts]},
        log_x=True,
    )
    table(outliers)
    table(starts)
    return [*outliers, *starts]
