"""What the charts of the report page show: numbers ready for JSON, in the order of the leaderboard."""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart.errors import InputError
from eckart.extras import require
from eckart.jobs.compare.leaderboard import QUANTITIES, UNBUDGETED, Metric, is_of, pareto_front
from eckart.jobs.compare.names import DENSE, FULL, HEAD_ONLY, TRIVIAL

if TYPE_CHECKING:
    import pandas as pd

    from eckart.jobs.compare.judgement import Judgement

ARM = ["method", "label", "budget"]
CURVE_POINTS = 120
SHADES = 12
CURVES = {
    "validation score": ("validation", "score"),
    "validation loss": ("validation", "loss"),
    "training loss": ("train", "loss"),
}


def score_range(board: pd.DataFrame) -> tuple[float, float]:
    """The ends of the scale of scores.

    A score far below the rest (a run at chance level) does not squeeze the others: the scale ends before it.
    """
    scored = board[np.isfinite(board["score"].astype(float))] if len(board) else board
    low, high = 0.0, 1.0
    if len(scored):
        best = scored["score"].iloc[0]
        width = (scored["ci_high"] - scored["ci_low"]).median()
        reach = 8 * max(abs(best - scored["score"].median()), width if math.isfinite(width) else 0.0)
        near = scored[(scored["score"] - best).abs() <= reach]
        low = float(near[["score", "ci_low"]].min().min())
        high = float(near[["score", "ci_high"]].max().max())
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _number(value: float) -> float | None:
    """A number for JSON with five digits; what is not finite is missing."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _colours(rows: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """A colour of the page for each method in the order of their first runs, so that a rebuilt page keeps them."""
    keys = rows[~rows["method"].isin(UNBUDGETED)][ARM].drop_duplicates()
    numbered = enumerate(keys.itertuples(index=False))
    return {tuple(key): f"var(--s{number % SHADES})" for number, key in numbered}


def arms(judgement: Judgement, rows: pd.DataFrame, metric: Metric) -> list[dict[str, Any]]:
    """The leaderboard's rows as the page's script needs them."""
    board, colours = judgement.board, _colours(rows)
    left = {row.Index for row in judgement.left}
    plain = {HEAD_ONLY: "var(--soft)", FULL: "var(--ink)", DENSE: "var(--ink)", TRIVIAL: "var(--soft)"}
    several = len(set(board["budget"]) - {""}) > 1
    found = []
    for row in board.itertuples():
        shown = {"score": metric.show(row.score) if math.isfinite(row.score) else "–"}
        shown |= {key: item.show(getattr(row, key)) for key, item in QUANTITIES.items()}
        found.append(
            {
                "id": row.Index,
                "label": f"{row.label} · {row.budget}" if several and row.budget else row.label,
                "method": row.method,
                "colour": plain.get(row.method) or colours[row.method, row.label, row.budget],
                "budgeted": row.method not in UNBUDGETED,
                "near": row.Index in left,
                "values": {key: _number(getattr(row, key)) for key in ("score", *QUANTITIES)},
                "shown": shown,
                "interval": [_number(row.ci_low), _number(row.ci_high)],
                "intervalShown": metric.interval(row.ci_low, row.ci_high),
            }
        )
    return found


def rates(board: pd.DataFrame, rows: pd.DataFrame) -> list[list[Any]]:
    """Points of validation score against learning rate: arm, rate, score, whether it was chosen."""
    tuned = rows[(rows["stage"] == "tune") & np.isfinite(rows["validation_score"])]
    found: list[list[Any]] = []
    for row in board.itertuples():
        mine = tuned[is_of(tuned, row)]
        longest = mine.sort_values("steps", kind="stable").groupby("lr").tail(1).sort_values("lr")
        for run in longest.itertuples():
            found.append([row.Index, _number(run.lr), _number(run.validation_score), bool(run.lr == row.lr)])
    return found


def fronts(board: pd.DataFrame) -> dict[str, list[list[int]]]:
    """The Pareto front of every pair of axes: over all rows, and over those trained at the budget."""
    budgeted = board[~board["method"].isin(UNBUDGETED)]
    return {
        "|".join(sorted((x, y))): [
            [int(i) for i in pareto_front(board, x, y)],
            [int(budgeted.index[i]) for i in pareto_front(budgeted, x, y)],
        ]
        for x, y in combinations(("score", *QUANTITIES), 2)
    }


def _thin(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, CURVE_POINTS)).round().astype(int))


def _curve(points: pd.DataFrame, measure: str) -> list[list[float | None]]:
    """Of one method: step, mean, smallest and largest."""
    shown = points[points["stage"] == "final"]
    if shown.empty and len(points):
        rising = points["validation_score"].where(points["greater_is_better"], -points["validation_score"])
        best = points.assign(order=rising).sort_values("order", ascending=False, kind="stable")
        shown = points[points["run_id"] == best["run_id"].iloc[0]]
    steps = shown.groupby("step")[measure].agg(["mean", "min", "max"])
    thinned = steps.iloc[_thin(len(steps))] if len(steps) else steps
    return [[_number(value) for value in row] for row in thinned.itertuples(name=None)]


def curves(board: pd.DataFrame, rows: pd.DataFrame, points: pd.DataFrame) -> list[dict[str, Any]]:
    """Learning curves of each method: mean, smallest and largest over its final runs at every step.

    A method without such a curve on its final runs is shown by the tuning run with the best validation score.
    """
    pd = require("pandas", extra="compare")
    needed = {"run_id", "step", "split"}
    if not needed <= set(points.columns):
        raise InputError(f"curves.csv has no column {', '.join(sorted(needed - set(points.columns)))}")
    joined = points.merge(
        rows[["run_id", "stage", "validation_score", "greater_is_better", *ARM]], on="run_id"
    )
    found = []
    for name, (split, measure) in CURVES.items():
        if measure not in joined:
            continue
        data = joined[joined["split"] == split].copy()
        data[measure] = pd.to_numeric(data[measure], errors="coerce")
        data = data[np.isfinite(data[measure])]
        lines = {row.Index: _curve(data[is_of(data, row)], measure) for row in board.itertuples()}
        lines = {arm: line for arm, line in lines.items() if line}
        if lines:
            found.append({"name": name, "measure": measure, "lines": lines})
    return found
