"""Over-parameterised matrix sensing: 1/T² from a symmetric start, linear from an unequal one.

Squared errors of `MatrixSensingGD` on a 50 × 50 matrix of rank 3 that is observed whole. Fits the exponent of the
symmetric descent, the rate of the unequal start, and counts the steps after the factors were balanced once. Five
seconds on one core.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks._figure import line_chart
from benchmarks._fit import exponent
from benchmarks._harness import table
from eckart.recovery import IdentityOperator, MatrixSensingGD
from evidence._problems import low_rank
from evidence._record import Rows

N, R = 50, 3
Courses = dict[str, np.ndarray]


def arguments(parser: argparse.ArgumentParser) -> None:
    """It has no options."""


def thin(errors: np.ndarray, points: int = 200) -> list[tuple[float, float]]:
    index = np.unique(np.geomspace(1, len(errors) - 1, points).astype(int))
    return [(int(t), float(errors[t])) for t in index if errors[t] > 1e-28]


def course(target: np.ndarray, k: int, steps: int, **options: Any) -> tuple[np.ndarray, int]:
    """Squared errors of a run that sees the whole matrix, and the step of its re-factoring, 0 without one."""
    errors: list[float] = []
    fitted = MatrixSensingGD(
        k,
        eta=0.1,
        max_iter=steps,
        tol=0.0,
        random_state=1,
        callback=lambda t, i: errors.append(
            float(np.square((i["left"] @ i["right"].mT).numpy() - target).sum())
        ),
        **options,
    ).fit(IdentityOperator(target.shape), target.ravel())
    return np.array(errors), fitted.switch_iter_ or 0


def symmetric() -> tuple[Rows, Courses]:
    """With k above the rank the squared error falls like (k − r) / (2 η t)²; with k = r linearly."""
    target = low_rank(N, N, np.ones(R), symmetric=True)
    rows, courses = [], {}
    for k in (R, R + 1, R + 5):
        steps = 20_000 if k > R else 1_000
        errors, _ = course(target, k, steps, parametrization="symmetric", alpha=0.1)
        courses[f"symmetric, k = {k}"] = errors
        row: dict[str, Any] = {"part": "symmetric", "k": k, "step": steps, "error": float(errors[steps])}
        if k > R:
            t = np.arange(2_000, 20_001)
            row["slope"] = exponent(t, errors[t])
            row["(2 eta t)^2 error"] = float((0.2 * steps) ** 2 * errors[steps])
        rows.append(row)
    return rows, courses


def unequal() -> tuple[Rows, Courses]:
    """From an unequal start: a rate of α² as it is, none of α after one re-factoring."""
    target = low_rank(N, N, np.array([1.0, 0.8, 0.6]))
    rows, courses, steps = [], {}, 6_000
    for alpha in (0.1, 0.05, 0.025):
        errors, _ = course(target, 6, steps, alpha=alpha, rebalance="none")
        courses[f"plain, α = {alpha}"] = errors
        tail = np.flatnonzero((errors > 1e-24) & (np.arange(steps + 1) > 600))
        tail = tail[len(tail) // 2 :]
        rate = -float(np.polyfit(tail, np.log(errors[tail]), 1)[0]) / alpha**2
        rows.append({"part": "plain", "alpha": alpha, "rate / alpha^2": rate})
    for alpha in (0.2, 0.1, 0.05, 0.02):
        errors, switch = course(target, 6, 3_000, alpha=alpha)
        courses[f"re-factored, α = {alpha}"] = errors
        rows.append(
            {"part": "re-factored", "alpha": alpha, "steps to 1e-16": int(np.argmax(errors < 1e-16)) - switch}
        )
    return rows, courses


def conditions() -> Rows:
    """Steps to 1e-14 with k = 6 against the exact rank, over the condition number."""
    rows = []
    for kappa in (1, 3, 10):
        target = low_rank(N, N, np.linspace(1, 1 / kappa, R))
        over, exact = (int(np.argmax(course(target, k, 6_000, alpha=0.02)[0] < 1e-14)) for k in (2 * R, R))
        rows.append(
            {"part": "condition", "kappa": kappa, "over": over, "exact": exact, "ratio": over / exact}
        )
    return rows


def run(_: argparse.Namespace) -> Rows:
    """Measure all parts and draw the two descents."""
    equal, flat = symmetric()
    uneven, graded = unequal()
    parts = (equal, uneven[:3], uneven[3:], conditions())
    line_chart(
        "matrix-sensing-symmetric",
        "Symmetric descent: 1/T² as soon as k exceeds the rank (3)",
        "step",
        "squared error",
        {name: thin(errors) for name, errors in flat.items()},
        log_x=True,
    )
    line_chart(
        "matrix-sensing-asymmetric",
        "Unequal start: linear at a rate of α²; re-factored once: free of α",
        "step",
        "squared error",
        {
            name: [(t, float(errors[t])) for t in range(0, len(errors), 30) if errors[t] > 1e-24]
            for name, errors in graded.items()
        },
    )
    for part in parts[1:]:
        table(part)
    return [row for part in parts for row in part]
