"""From the rows of a comparison to its leaderboard and Pareto fronts, and how their numbers are written.

The interval of a method joins two sources of luck: which examples are in the test split, and which seed trained it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart.errors import InputError
from eckart.extras import require
from eckart.jobs.compare.names import DENSE, FULL, HEAD_ONLY, LORA, TRIVIAL
from eckart.tasks.statistics import combined_interval

if TYPE_CHECKING:
    import pandas as pd

BASELINES = (HEAD_ONLY, FULL, LORA, TRIVIAL, DENSE)
UNBUDGETED = {
    HEAD_ONLY: "the head alone",
    FULL: "full fine-tuning",
    TRIVIAL: "the trivial predictor",
    DENSE: "the dense model",
}
"""Baselines that do not train at the budget, as prose."""

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
    "forgetting",
    "step_time_ratio",
    "step_seconds",
    "peak_memory_mb",
    "forward_ratio",
    "generation_ratio",
    "prepare_seconds",
    "seconds",
)
TEXTS = (
    *("run_id", "stage", "method", "label", "options", "budget"),
    *("status", "metric", "also", "error", "machine"),
)


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

    def amount(self, value: float) -> str:
        return f"{value * self.scale:.{self.decimals}f} {self.difference}".rstrip()

    def change(self, value: float, low: float, high: float) -> str:
        """A difference with its interval, signed: ``−1.2 (−3.0 to +0.6)``."""
        if not math.isfinite(value + low + high):
            return "–"
        rounded = [round(x * self.scale, self.decimals) + 0.0 for x in (value, low, high)]
        shown = [f"{x:+.{self.decimals}f}".replace("-", "−") for x in rounded]
        return f"{shown[0]} ({shown[1]} to {shown[2]})"

    def margin(self, value: float, low: float, high: float) -> str:
        if not math.isfinite(low + high):
            return self.amount(value)
        numbers = [f"{x * self.scale:.{self.decimals}f}" for x in (value, low, high)]
        unit = f" {self.difference}" if self.difference else ""
        return f"{numbers[0]}{unit} (interval {numbers[1]} to {numbers[2]})"


METRICS = {
    "accuracy": Metric("accuracy", scale=100, suffix="%", difference="points", decimals=1, low=0.0, high=1.0),
    "bits_per_token": Metric("bits per token", difference="bits", low=0.0),
    "bits_per_answer_token": Metric("bits per answer token", difference="bits", low=0.0),
    **{
        name: Metric(title, scale=100, suffix="%", difference="points", decimals=1, low=0.0, high=1.0)
        for name, title in (
            ("exact_match", "exact match"),
            ("label_accuracy", "label accuracy"),
            ("subset_accuracy", "subset accuracy"),
            ("accuracy_norm", "accuracy by letter"),
            ("token_accuracy", "token accuracy"),
            ("pixel_accuracy", "pixel accuracy"),
        )
    },
    **{
        name: Metric(title, low=0.0, high=1.0)
        for name, title in (
            ("macro_f1", "macro-F1"),
            ("micro_f1", "micro-F1"),
            ("auroc", "AUROC"),
            ("entity_f1", "entity F1"),
            ("entity_macro_f1", "entity macro-F1"),
            ("dice", "Dice"),
            ("iou", "IoU"),
            ("mean_iou", "mean IoU"),
        )
    },
    **{
        name: Metric(title, low=-1.0, high=1.0)
        for name, title in (("mcc", "MCC"), ("pearson", "Pearson's r"), ("spearman", "Spearman's ρ"))
    },
    "rmse": Metric("RMSE", low=0.0),
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
        Quantity("forward_ratio", "Forward", "time of a forward pass, × the dense model", "ratio"),
        Quantity("generation_ratio", "Generation", "time of generation, × the dense model", "ratio"),
        Quantity("prepare_seconds", "Compression", "time of compressing, statistics included", "seconds"),
        Quantity("seconds", "Run time", "time of one run", "seconds"),
    )
}


def quantities_of(board: pd.DataFrame) -> dict[str, Quantity]:
    """The columns that a leaderboard has something in, by name."""
    return {name: item for name, item in QUANTITIES.items() if name in board and (board[name] > 0).any()}


def metric_named(name: str) -> Metric:
    """How a score of this name is written, also one that is not known."""
    return METRICS.get(name, Metric(name.replace("_", " ")))


def metric_of(frame: pd.DataFrame) -> Metric:
    """The metric that a frame of runs, or a leaderboard, is scored by."""
    names = [name for name in frame["metric"] if name] if "metric" in frame else []
    name = names[0] if names else "score"
    return metric_named(name)


def forgetting_shown(board: pd.DataFrame) -> list[str] | None:
    """Of each arm the bits that a token of the general text costs more than before; None where none was given."""
    if "forgetting" not in board or not np.isfinite(board["forgetting"].astype(float)).any():
        return None
    return [f"{bits:+.3f}".replace("-", "−") if math.isfinite(bits) else "–" for bits in board["forgetting"]]


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


def is_of(rows: pd.DataFrame, arm: Any) -> pd.Series[bool]:
    """Which runs are those of an arm of the board."""
    return (rows[["method", "label", "budget"]] == [arm.method, arm.label, arm.budget]).all(axis=1)


def _state(tuned: pd.DataFrame, finals: pd.DataFrame, finished: pd.DataFrame) -> str:
    if len(finished):
        return "complete" if len(finished) == len(finals) else "partial"
    ended = finals if len(finals) else tuned
    if len(ended) == 0 or (ended["status"] == "complete").any():
        return "pending"
    return str(ended["status"].mode()[0])


def _line(arm: pd.DataFrame, metric: Metric) -> dict[str, Any]:
    """What the leaderboard says of one method, from its runs."""
    finals, tuned = arm[arm["stage"] == "final"], arm[arm["stage"] == "tune"]
    done = finals[finals["status"] == "complete"]
    retried = finals["seed"].isin(done["seed"]) & (finals["status"] != "complete")
    finals = finals[~retried]
    shown = done if len(done) else arm
    low, high = math.nan, math.nan
    if len(done):
        low, high = combined_interval(done["score"], done["ci_low"], done["ci_high"])
    return {
        "baseline": arm["method"].iloc[0] in BASELINES,
        "state": _state(tuned, finals, done),
        "score": done["score"].mean(),
        "ci_low": max(low, metric.low) if math.isfinite(low) else low,
        "ci_high": min(high, metric.high) if math.isfinite(high) else high,
        "seed_deviation": done["score"].std(ddof=1),
        "seeds": len(done),
        "seeds_run": len(finals),
        "trials": len(tuned),
        "lr": done["lr"].median(),
        "steps": done["steps"].max(),
        **{
            size: shown[size].max()
            for size in ("trainable_parameters", "head_parameters", "trained_parameters", "saved_bytes")
        },
        "step_time_ratio": done["step_time_ratio"].median(),
        "peak_memory_mb": done["peak_memory_mb"].max(),
        **{
            cost: done[cost].median()
            for cost in ("forward_ratio", "generation_ratio", "prepare_seconds", "seconds")
        },
        "options": shown["options"].iloc[0],
        "error": "" if len(done) else next(filter(None, arm["error"]), ""),
        "metric": arm["metric"].iloc[0],
        "also": _mean(done["also"]),
        "forgetting": done["forgetting"].mean(),
        "greater_is_better": bool(arm["greater_is_better"].iloc[0]),
    }


def _mean(texts: pd.Series[str]) -> str:
    """The other scores of some runs, each the mean over them, as JSON."""
    found: dict[str, list[float]] = {}
    for text in texts:
        for name, value in json.loads(text or "{}").items():
            found.setdefault(name, []).append(value)
    return json.dumps({name: float(np.mean(values)) for name, values in found.items()})


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
    arms = rows[rows["stage"] != "floor"].groupby(["method", "label", "budget"], sort=False)
    board = [{"rank": 0, **dict(zip(arms.keys, key, strict=True)), **_line(arm, metric)} for key, arm in arms]
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
