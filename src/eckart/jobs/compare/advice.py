"""From the rows of a comparison to a leaderboard, a Pareto front and one plain sentence of advice.

The interval of a method joins two sources of luck: which examples are in the test split, and which seed trained it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart.errors import InputError
from eckart.extras import require
from eckart.tasks.statistics import combined_interval

if TYPE_CHECKING:
    import pandas as pd

HEAD_ONLY, FULL, LORA = "head-only", "full", "lora"
BASELINES = (HEAD_ONLY, FULL, LORA)
UNBUDGETED = {HEAD_ONLY: "training the head alone", FULL: "full fine-tuning"}
"""Baselines that do not train at the budget, as prose: context for the candidates, never candidates themselves."""

REQUIRED = ("run_id", "stage", "method", "status", "score")
NUMBERS = (
    "trainable_parameters",
    "head_parameters",
    "saved_bytes",
    "lr",
    "seed",
    "steps",
    "validation_score",
    "score",
    "ci_low",
    "ci_high",
    "step_time_ratio",
    "step_seconds",
    "peak_memory_mb",
    "seconds",
)
TEXTS = ("run_id", "stage", "method", "label", "options", "budget", "status", "metric", "error", "machine")


@dataclass(frozen=True)
class Metric:
    """How a score is written: ``accuracy`` 0.8421 reads ``84.2%``, a difference of 0.012 ``1.2 points``."""

    name: str
    scale: float = 1.0
    suffix: str = ""
    difference: str = ""
    decimals: int = 3
    low: float = -math.inf
    high: float = math.inf

    def show(self, value: float) -> str:
        return f"{value * self.scale:.{self.decimals}f}{self.suffix}"

    def interval(self, low: float, high: float) -> str:
        if not math.isfinite(low + high):
            return "–"
        return f"{low * self.scale:.{self.decimals}f}–{high * self.scale:.{self.decimals}f}{self.suffix}"

    def margin(self, value: float, low: float, high: float) -> str:
        if not math.isfinite(low + high):
            return f"{value * self.scale:.{self.decimals}f} {self.difference}".rstrip()
        numbers = [f"{x * self.scale:.{self.decimals}f}" for x in (value, low, high)]
        unit = f" {self.difference}" if self.difference else ""
        return f"{numbers[0]}{unit} (95% interval {numbers[1]} to {numbers[2]})"


METRICS = {
    "accuracy": Metric("accuracy", scale=100, suffix="%", difference="points", decimals=1, low=0.0, high=1.0),
    "bits_per_token": Metric("bits per token", difference="bits", low=0.0),
}


@dataclass(frozen=True)
class Quantity:
    """A column of the leaderboard that costs something, smaller is better, and how it is written."""

    column: str
    title: str
    label: str
    kind: str

    def show(self, value: float) -> str:
        if not math.isfinite(value):
            return "–"
        if self.kind == "ratio":
            return f"{value:.2f}×"
        if self.kind == "seconds":
            return f"{value / 60:.1f} min" if value >= 120 else f"{value:.{0 if value >= 10 else 1}f} s"
        steps = {
            "count": ["", "k", "M", "G"],
            "bytes": [" B", " kB", " MB", " GB"],
            "megabytes": [" MB", " GB"],
        }
        units = steps[self.kind]
        power = 0
        while value >= 999.5 and power < len(units) - 1:
            value, power = value / 1000, power + 1
        digits = 0 if value >= 99.5 or (power == 0 and value == int(value)) else 1 if value >= 9.95 else 2
        return f"{value:.{digits}f}{units[power]}"


QUANTITIES = {
    item.column: item
    for item in (
        Quantity("trained_parameters", "Trained", "trained parameters, head included", "count"),
        Quantity("saved_bytes", "Saved", "bytes saved", "bytes"),
        Quantity("peak_memory_mb", "Peak memory", "peak memory", "megabytes"),
        Quantity("step_time_ratio", "Step time", "step time, × the frozen floor", "ratio"),
        Quantity("seconds", "Run time", "time of one run", "seconds"),
    )
}


def metric_of(frame: pd.DataFrame) -> Metric:
    """The metric that a frame of runs, or a leaderboard, is scored by."""
    names = [name for name in frame["metric"] if name] if "metric" in frame else []
    name = names[0] if names else "score"
    return METRICS.get(name, Metric(name.replace("_", " ")))


def tidy(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of a results table with every column present and of one type; what does not parse is missing.

    Raises:
        InputError: a column that nothing can be said without is not there.
    """
    pd = require("pandas", extra="compare")
    missing = [column for column in REQUIRED if column not in results.columns]
    if missing:
        raise InputError(
            f"results has no column {', '.join(missing)}: it must be the table that compare writes"
        )
    rows = results.reset_index(drop=True).copy()
    for column in NUMBERS:
        values = rows[column] if column in rows else np.nan
        rows[column] = pd.to_numeric(pd.Series(values, index=rows.index), errors="coerce").astype(float)
    for column in TEXTS:
        values = rows[column] if column in rows else ""
        rows[column] = pd.Series(values, index=rows.index, dtype=object).fillna("").astype(str)
    sizes = rows[["trainable_parameters", "head_parameters"]]
    rows["trained_parameters"] = sizes.sum(axis=1, min_count=1)
    rows["label"] = rows["label"].where(rows["label"] != "", rows["method"])
    given = rows["greater_is_better"] if "greater_is_better" in rows else pd.Series(True, index=rows.index)
    rows["greater_is_better"] = ~given.astype(str).str.lower().isin(["false", "0", "0.0"])
    blown_up = (rows["stage"] == "final") & (rows["status"] == "complete") & ~np.isfinite(rows["score"])
    rows.loc[blown_up, "status"] = "diverged"
    return rows


def _state(tuned: pd.DataFrame, finals: pd.DataFrame, finished: pd.DataFrame) -> str:
    if len(finished):
        return "complete" if len(finished) == len(finals) else "partial"
    ended = finals if len(finals) else tuned
    if len(ended) == 0 or (ended["status"] == "complete").any():
        return "pending"
    return str(ended["status"].mode()[0])


def leaderboard(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each method, best first: its final runs joined over seeds, with a 95% interval.

    Methods without a score come last; ``state`` says why: "pending", "pruned", "failed" or "diverged". "partial"
    marks a score over fewer seeds than were run. The step time is the median over seeds, the peak memory the largest.

    Args:
        results: one row for each run, as ``results.csv`` holds them.

    Raises:
        InputError: a needed column is missing.
    """
    pd = require("pandas", extra="compare")
    rows = tidy(results)
    metric = metric_of(rows)
    board = []
    for (method, label, budget), arm in rows[rows["stage"] != "floor"].groupby(
        ["method", "label", "budget"], sort=False
    ):
        finals, tuned = arm[arm["stage"] == "final"], arm[arm["stage"] == "tune"]
        done = finals[finals["status"] == "complete"]
        retried = finals["seed"].isin(done["seed"]) & (finals["status"] != "complete")
        finals = finals[~retried]
        shown = done if len(done) else arm
        low, high = (
            combined_interval(done["score"], done["ci_low"], done["ci_high"])
            if len(done)
            else (math.nan,) * 2
        )
        board.append(
            {
                "rank": 0,
                "method": method,
                "label": label,
                "budget": budget,
                "baseline": method in BASELINES,
                "state": _state(tuned, finals, done),
                "score": done["score"].mean(),
                "ci_low": max(low, metric.low) if math.isfinite(low) else low,
                "ci_high": min(high, metric.high) if math.isfinite(high) else high,
                "seed_deviation": done["score"].std(ddof=1),
                "seeds": len(done),
                "seeds_run": len(finals),
                "trials": len(tuned),
                "lr": done["lr"].median(),
                "trainable_parameters": shown["trainable_parameters"].max(),
                "head_parameters": shown["head_parameters"].max(),
                "trained_parameters": shown["trained_parameters"].max(),
                "saved_bytes": shown["saved_bytes"].max(),
                "step_time_ratio": done["step_time_ratio"].median(),
                "peak_memory_mb": done["peak_memory_mb"].max(),
                "seconds": done["seconds"].median(),
                "options": shown["options"].iloc[0],
                "error": "" if len(done) else next(filter(None, arm["error"]), ""),
                "metric": arm["metric"].iloc[0],
                "greater_is_better": bool(arm["greater_is_better"].iloc[0]),
            }
        )
    columns = list(board[0]) if board else ["rank", "method", "label", "budget", "score", "metric", "state"]
    frame = pd.DataFrame(board, columns=columns)
    if board:
        worse = np.where(frame["greater_is_better"], -frame["score"], frame["score"])
        frame = frame.iloc[np.argsort(worse, kind="stable")].reset_index(drop=True)  # numpy puts NaN last
        frame["rank"] = np.arange(1, len(frame) + 1)
    return frame


def pareto_front(board: pd.DataFrame, x: str, y: str) -> list[int]:
    """Positions of the rows that no other row beats: none is as good in both columns and better in one.

    Args:
        board: a leaderboard.
        x, y: its columns. ``score`` is better in the metric's own direction, everything else when smaller.
    """
    if board.empty:
        return []
    sign = [
        -1.0 if column == "score" and bool(board["greater_is_better"].iloc[0]) else 1.0 for column in (x, y)
    ]
    costs = board[[x, y]].to_numpy(dtype=float) * sign
    known = np.isfinite(costs).all(axis=1)

    def beaten(point: np.ndarray) -> bool:
        return bool(((costs <= point).all(axis=1) & (costs < point).any(axis=1) & known).any())

    return [i for i in range(len(board)) if known[i] and not beaten(costs[i])]


def overlap(one: Any, other: Any) -> bool:
    """Whether two leaderboard rows cannot be told apart; an unknown interval overlaps everything."""
    apart = one.ci_low > other.ci_high or one.ci_high < other.ci_low
    return not apart


def _upwards(row: Any) -> tuple[float, float, float]:
    """Score and interval of a row with the sign that makes larger better."""
    if row.greater_is_better:
        return row.score, row.ci_low, row.ci_high
    return -row.score, -row.ci_high, -row.ci_low


def lead(one: Any, other: Any) -> tuple[float, float, float]:
    """By how much one leaderboard row is better than another, with a 95% interval from their two intervals.

    d = a − b, from d − √((a − l_a)² + (u_b − b)²) to d + √((u_a − a)² + (b − l_b)²).

    Source: MOVER, Zou and Donner, Statistics in Medicine 27 (2008).
    """
    (a, a_low, a_high), (b, b_low, b_high) = _upwards(one), _upwards(other)
    return a - b, a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def _join(items: Iterable[str]) -> str:
    words = list(items)
    return "".join(words) if len(words) < 2 else f"{', '.join(words[:-1])} and {words[-1]}"


def _untested(waiting: list[Any]) -> str:
    return f"{_join(row.label for row in waiting)} {'is' if len(waiting) == 1 else 'are'} still to be tested"


def _cheapest(tied: list[Any]) -> str:
    """Which of the methods that cannot be told apart costs least to keep and to train."""
    merits: dict[str, list[str]] = {}
    for column, verb, unit in (
        ("saved_bytes", "is the smallest on disk", ""),
        ("step_time_ratio", "has the shortest step", " the frozen model's"),
    ):
        priced = [row for row in tied if math.isfinite(getattr(row, column))]
        if len(priced) > 1:
            least = min(priced, key=lambda row: getattr(row, column))
            shown = QUANTITIES[column].show(getattr(least, column))
            merits.setdefault(least.label, []).append(f"{verb} ({shown}{unit})")
    named = _join(f"{label} {_join(theirs)}" for label, theirs in merits.items())
    return f"Of these, {named}." if named else ""


def _scored(row: Any, metric: Metric) -> str:
    if not math.isfinite(row.ci_low + row.ci_high):
        return f"{metric.show(row.score)}, interval unknown"
    return f"{metric.show(row.score)}, 95% interval {metric.interval(row.ci_low, row.ci_high)}"


def _verdict(
    best: Any, others: list[Any], pending: list[Any], head: Any, metric: Metric, where: str
) -> list[str]:
    """The recommendation among the methods of one budget, or why there is none."""
    shown = f"{where} ({metric.name} {_scored(best, metric)})"
    if pending:
        return [f"No recommendation yet: {best.label} leads{shown}, but {_untested(pending)}."]
    if not others:
        return [f"Nothing to choose between: {best.label} is the only method with a test score{shown}."]
    tied = [row for row in others if overlap(best, row)]
    if tied:
        total, equal = len(others) + 1, len(tied) + 1
        crowd = f"{equal} of {total} methods" if equal < total else f"the {total} methods"
        rivals = f"all {len(tied)} others" if equal == total > 5 else _join(row.label for row in tied)
        return [
            f"No recommendation{where}: {crowd} cannot be told apart.",
            f"{best.label} scores best ({metric.name} {_scored(best, metric)}), "
            f"but its interval meets that of {rivals}.",
            _cheapest([best, *tied]),
        ]
    none = f"No recommendation: {best.label} scores best{shown}, but"
    if head is not None and overlap(best, head):
        return [f"{none} training the head alone does as well within the intervals."]
    if head is not None and lead(best, head)[0] < 0:
        return [f"{none} training the head alone does better."]
    if best.state == "partial":
        lost = best.seeds_run - best.seeds
        return [f"{none} {lost} of its {best.seeds_run} runs on the test split diverged or failed."]
    gap = metric.margin(*lead(best, others[0]))
    return [f"Use {best.label}: it scores best{shown}, ahead of {others[0].label}, the next, by {gap}."]


def _against(best: Any, baseline: Any, metric: Metric) -> str:
    """How the best method stands to one baseline."""
    name = UNBUDGETED.get(baseline.method, baseline.label)
    start = name[0].upper() + name[1:]
    gap = lead(best, baseline)
    times = ""
    if baseline.method == FULL and baseline.trained_parameters > best.trained_parameters > 0:
        times = f"{baseline.trained_parameters / best.trained_parameters:,.0f} times as many parameters"
    if overlap(best, baseline):
        moral = {HEAD_ONLY: ": an adapter may not be needed", FULL: times and f", and trains {times}"}
        shown = f"{start} ({_scored(baseline, metric)})"
        return f"{shown} cannot be told apart from {best.label}{moral.get(baseline.method, '')}."
    if gap[0] > 0:
        return f"{best.label} is ahead of {name} by {metric.margin(*gap)}."
    ahead = metric.margin(-gap[0], -gap[2], -gap[1])
    return f"{start} is ahead of {best.label} by {ahead}{times and f', with {times}'}."


def sentences(board: pd.DataFrame) -> list[str]:
    """The advice sentence by sentence, the verdict first. See `advice`."""
    if board.empty:
        return ["No advice yet: no run has finished."]
    metric = metric_of(board)
    rows = list(board.itertuples())
    scored = [row for row in rows if math.isfinite(row.score)]
    candidates = [row for row in scored if row.method not in UNBUDGETED]
    waiting = [row for row in rows if row.state == "pending"]
    if not candidates:
        if waiting:
            return [f"No advice yet: {_untested(waiting)}."]
        lost = _join(f"{row.label} ({row.state})" for row in rows if row.method not in UNBUDGETED)
        return [f"No advice: no method at the budget has a test score{lost and f', {lost}'}."]

    said = []
    for budget in dict.fromkeys(row.budget for row in candidates):
        best, *others = (row for row in candidates if row.budget == budget)
        where = f" at a budget of {budget}" if budget else ""
        head = next((row for row in scored if row.method == HEAD_ONLY), None)
        pending = [row for row in waiting if row.method == HEAD_ONLY or row.budget == budget]
        said += _verdict(best, others, pending, head, metric, where)
        named = {best.Index, *(row.Index for row in others if overlap(best, row))}
        if others and not overlap(best, others[0]):
            named.add(others[0].Index)
        baselines = [row for row in scored if row.method in UNBUDGETED]
        baselines += [row for row in others if row.method == LORA]
        said += [_against(best, row, metric) for row in baselines if row.Index not in named]

    absent = [name for name in BASELINES if name not in set(board["method"])]
    if absent:
        names = _join(UNBUDGETED.get(name, "LoRA") for name in absent)
        said.append(f"Not compared with {names}: there is no such run.")
    missing = [f"{row.label} ({row.state})" for row in rows if math.isnan(row.score) and row not in waiting]
    if missing:
        said.append(f"Without a test score: {_join(missing)}.")
    single = [row.label for row in scored if row.seeds == 1]
    if len(single) == len(scored):
        said.append(
            "Only one seed was run: the intervals cover the sampling of the test set, not the luck of training."
        )
    elif single:
        said.append(f"One seed only, so an interval over test examples alone: {_join(single)}.")
    unsteady = [
        f"{row.label} ({row.seeds_run - row.seeds} of {row.seeds_run})"
        for row in scored
        if row.state == "partial"
    ]
    if unsteady:
        said.append(f"Runs that diverged or failed and are not in the score: {_join(unsteady)}.")
    return [sentence for sentence in said if sentence]


def advice(results: pd.DataFrame) -> str:
    """What the numbers say one should use, in plain sentences; nothing is recommended where intervals overlap.

    A method is recommended when its interval touches that of no other method at its budget and of no head trained
    alone, and none of its runs was lost. Otherwise the methods that cannot be told apart are named.

    Args:
        results: one row for each run, as ``results.csv`` holds them.

    Raises:
        InputError: a needed column is missing.
    """
    return " ".join(sentences(leaderboard(results)))
