"""The report page: one HTML file that shows a comparison, works offline and is a pure function of the study's files."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart.errors import InputError
from eckart.extras import require
from eckart.files import atomic_write
from eckart.jobs.compare.advice import (
    QUANTITIES,
    UNBUDGETED,
    Metric,
    advice,
    leaderboard,
    metric_of,
    overlap,
    pareto_front,
    sentences,
    tidy,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["advice", "build_report", "leaderboard", "pareto_front", "read_results"]

TEMPLATES = Path(__file__).parent / "templates"
CURVE_POINTS = 120
CURVES = {
    "validation score": ("validation", "score"),
    "validation loss": ("validation", "loss"),
    "training loss": ("train", "loss"),
}
STATES = {
    "running": "This study is still running: the numbers and the advice may change.",
    "interrupted": "This study was interrupted: run the same command again to finish it.",
    "timeout": "This study ran out of its time: run the same command again to finish it.",
}


def read_results(directory: Path) -> pd.DataFrame:
    """The table of runs of a study directory.

    Raises:
        InputError: ``results.csv`` is absent or is not a table of runs.
    """
    return tidy(_read_table(directory / "results.csv"))


def _read_table(path: Path) -> pd.DataFrame:
    pd = require("pandas", extra="compare")
    texts = {"run_id": str, "method": str, "label": str, "options": str, "budget": str, "error": str}
    try:
        return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=["", "nan", "NaN"])
    except FileNotFoundError:
        raise InputError(f"{path} is not there: give the --output directory of a comparison") from None
    except (ValueError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a CSV table ({reason}): run the comparison again") from None


def _read_study(path: Path) -> dict[str, Any]:
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is not there: give the --output directory of a comparison") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): run the comparison again") from None
    if not isinstance(study, dict):
        raise InputError(f"{path} holds no JSON object: run the comparison again")
    return study


def _json(value: Any) -> str:
    """JSON that can stand inside a script element: no ``<``, ``>``, ``&`` and no line separators of JavaScript."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _number(value: float) -> float | None:
    """A number for JSON with five digits; what is not finite is missing."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _pairs(value: Any) -> str:
    """A JSON object, or the text of one, as ``r=8, alpha=16``."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value else {}
        except ValueError:
            return str(value)
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{key}={item}" for key, item in value.items() if item is not None)


def _date(text: Any) -> str:
    try:
        return f"{datetime.fromisoformat(str(text)):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return ""


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """At most ``count`` round numbers inside an interval."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


class Whiskers:
    """The common scale of the leaderboard's dots and whiskers, from 0 to 100 percent of a cell's width.

    A score far below the rest (a run at chance level) does not squeeze the others: the scale ends before it, and it is
    drawn as an arrow at the edge.
    """

    def __init__(self, board: pd.DataFrame) -> None:
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
        self.low, self.high = low - margin, high + margin

    def at(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{100 * min(max(share, 0.0), 1.0):.2f}%"

    def width(self, low: float, high: float) -> str:
        return f"{max(float(self.at(high)[:-1]) - float(self.at(low)[:-1]), 0.0):.2f}%"

    def outside(self, value: float) -> int:
        return (value > self.high) - (value < self.low)

    @property
    def ticks(self) -> list[float]:
        return _ticks(self.low, self.high, 4)


def _colours(rows: pd.DataFrame) -> dict[tuple[str, str, str], int]:
    """A colour number for each method in the order of their first runs, so that a rebuilt page keeps them."""
    keys = rows[~rows["method"].isin(UNBUDGETED)][["method", "label", "budget"]].drop_duplicates()
    return {tuple(key): number for number, key in enumerate(keys.itertuples(index=False))}


def _arms(board: pd.DataFrame, rows: pd.DataFrame, metric: Metric) -> list[dict[str, Any]]:
    """The leaderboard's rows as the page's script needs them."""
    colours = _colours(rows)
    several = len(set(board["budget"]) - {""}) > 1
    arms = []
    for row in board.itertuples():
        shown = {"score": metric.show(row.score) if math.isfinite(row.score) else "–"}
        shown |= {key: item.show(getattr(row, key)) for key, item in QUANTITIES.items()}
        arms.append(
            {
                "id": row.Index,
                "label": f"{row.label} · {row.budget}" if several and row.budget else row.label,
                "method": row.method,
                "style": row.method
                if row.method in UNBUDGETED
                else f"s{colours[row.method, row.label, row.budget] % 12}",
                "budgeted": row.method not in UNBUDGETED,
                "values": {key: _number(getattr(row, key)) for key in ("score", *QUANTITIES)},
                "shown": shown,
                "interval": [_number(row.ci_low), _number(row.ci_high)],
                "intervalShown": metric.interval(row.ci_low, row.ci_high),
            }
        )
    return arms


def _fronts(board: pd.DataFrame) -> dict[str, list[list[int]]]:
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


def _curves(board: pd.DataFrame, rows: pd.DataFrame, curves: pd.DataFrame) -> list[dict[str, Any]]:
    """Learning curves of each method: mean, smallest and largest over its final runs at every step.

    A method without such a curve on its final runs is shown by the tuning run with the best validation score.
    """
    pd = require("pandas", extra="compare")
    needed = {"run_id", "step", "split"}
    if not needed <= set(curves.columns):
        raise InputError(f"curves.csv has no column {', '.join(sorted(needed - set(curves.columns)))}")
    keys = ["method", "label", "budget"]
    joined = curves.merge(
        rows[["run_id", "stage", "validation_score", "greater_is_better", *keys]], on="run_id"
    )
    found = []
    for name, (split, measure) in CURVES.items():
        if measure not in joined:
            continue
        data = joined[joined["split"] == split].copy()
        data[measure] = pd.to_numeric(data[measure], errors="coerce")
        data = data[np.isfinite(data[measure])]
        lines = {}
        for row in board.itertuples():
            arm = data[(data[keys] == [row.method, row.label, row.budget]).all(axis=1)]
            line = arm[arm["stage"] == "final"]
            if line.empty and len(arm):
                tuned = arm.assign(
                    order=arm["validation_score"].where(arm["greater_is_better"], -arm["validation_score"])
                ).sort_values("order", ascending=False, kind="stable")
                line = arm[arm["run_id"] == tuned["run_id"].iloc[0]]
            if len(line):
                steps = (
                    line.groupby("step")[measure].agg(["mean", "min", "max"]).iloc[lambda t: _thin(len(t))]
                )
                lines[row.Index] = [
                    [_number(value) for value in (step, *values)]
                    for step, *values in steps.itertuples(name=None)
                ]
        if lines:
            found.append({"name": name, "measure": measure, "lines": lines})
    return found


def _tuning(board: pd.DataFrame, rows: pd.DataFrame, metric: Metric) -> list[dict[str, Any]]:
    """The learning rates tried for each method with their validation scores, and whether the best is at an end."""
    table = []
    for row in board.itertuples():
        mine = (rows[["method", "label", "budget"]] == [row.method, row.label, row.budget]).all(axis=1)
        tuned = rows[mine & (rows["stage"] == "tune")].sort_values("lr", kind="stable")
        if tuned.empty:
            continue
        trials = [
            {
                "lr": f"{run.lr:.3g}",
                "chosen": run.lr == row.lr,
                "status": run.status,
                "score": metric.show(run.validation_score) if math.isfinite(run.validation_score) else "",
            }
            for run in tuned.itertuples()
        ]
        rates = tuned["lr"].dropna().unique()
        edge = ""
        if len(rates) > 1 and row.lr in (rates.min(), rates.max()):
            edge = "larger" if row.lr == rates.max() else "smaller"
        table.append({"label": row.label, "trials": trials, "edge": edge})
    return table


def _runs(rows: pd.DataFrame, metric: Metric) -> list[dict[str, Any]]:
    """All runs with each cell as (text shown, number to sort by or None)."""

    def cell(value: float, text: str) -> tuple[str, float | None]:
        return (text, value) if math.isfinite(value) else ("–", None)

    table = []
    for run in rows.itertuples():
        score = cell(run.score, metric.show(run.score))
        cells = {
            "lr": cell(run.lr, f"{run.lr:.3g}"),
            "seed": cell(run.seed, f"{run.seed:.0f}"),
            "steps": cell(run.steps, f"{run.steps:.0f}"),
            "validation": cell(run.validation_score, metric.show(run.validation_score)),
            "score": score,
        }
        for key, item in QUANTITIES.items():
            cells[key] = cell(getattr(run, key), item.show(getattr(run, key)))
        interval = metric.interval(run.ci_low, run.ci_high) if score[1] is not None else "–"
        table.append(
            {
                "id": run.run_id,
                "label": run.label,
                "method": run.method,
                "stage": run.stage,
                "status": run.status,
                "options": _pairs(run.options),
                "cells": cells,
                "interval": interval,
                "error": run.error,
            }
        )
    return table


def _facts(study: dict[str, Any], rows: pd.DataFrame) -> list[tuple[str, str]]:
    """What was run, as pairs of a name and a text; what the study did not record is left out."""
    task = study.get("task") or {}
    tuned = rows[rows["stage"] == "tune"]
    trials = tuned.groupby(["method", "label", "budget"]).size()
    rates = sorted(tuned["lr"].dropna().unique())
    seeds = sorted(rows[rows["stage"] == "final"]["seed"].dropna().unique())
    machine = study.get("machine")
    labels = task.get("labels") or []
    facts = [
        ("Task", str(task.get("kind") or "").replace("-", " ")),
        ("Model", str(task.get("model") or "")),
        ("Data", str(task.get("data") or "")),
        ("Examples", ", ".join(f"{split} {size:,}" for split, size in (task.get("sizes") or {}).items())),
        (f"Labels ({len(labels)})", ", ".join(map(str, labels))),
        ("Budget", str(study.get("budget") or "")),
        ("Learning rates tried", ", ".join(f"{rate:.3g}" for rate in rates)),
        ("Trials for each method", _span(trials)),
        ("Seeds on the test split", ", ".join(f"{seed:.0f}" for seed in seeds)),
        ("Options", _pairs(study.get("options") or {})),
        (
            "Versions",
            ", ".join(f"{name} {version}" for name, version in (study.get("versions") or {}).items()),
        ),
        ("Machine", _pairs(machine).replace("=", " ") if isinstance(machine, dict) else str(machine or "")),
        ("Started", _date(study.get("started"))),
        ("Finished", _date(study.get("finished"))),
        ("Fingerprint of model, data and options", str(task.get("fingerprint") or "")),
    ]
    return [(name, text) for name, text in facts if text]


def _span(counts: Iterable[int]) -> str:
    values = sorted(set(counts))
    return "" if not values else f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _download(path: Path, kind: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def build_report(directory: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` from the files of a study; the same files give the same page.

    Args:
        directory: the ``--output`` directory of a comparison, with ``compare.json``, ``results.csv`` and, where
            learning curves were kept, ``curves.csv``.

    Raises:
        InputError: a file is missing or is not what its name says.
    """
    folder = Path(directory)
    study = _read_study(folder / "compare.json")
    rows = read_results(folder)
    board = leaderboard(rows)
    metric = metric_of(rows)
    said = sentences(board)
    whiskers = Whiskers(board)
    curves = (
        _curves(board, rows, _read_table(folder / "curves.csv")) if (folder / "curves.csv").exists() else []
    )
    arms = _arms(board, rows, metric)
    entries = list(board.itertuples())
    best = next((row for row in entries if row.method not in UNBUDGETED and math.isfinite(row.score)), None)
    task = study.get("task") or {}
    names = [Path(str(task[key])).name for key in ("model", "data") if task.get(key)]
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    data = {
        "metric": {
            "name": metric.name,
            "scale": metric.scale,
            "suffix": metric.suffix,
            "decimals": metric.decimals,
            "range": [whiskers.low, whiskers.high],
        },
        "greaterIsBetter": bool(rows["greater_is_better"].iloc[0]) if len(rows) else True,
        "quantities": {key: {"label": item.label, "kind": item.kind} for key, item in QUANTITIES.items()},
        "arms": arms,
        "fronts": _fronts(board) if len(board) else {},
        "curves": curves,
    }
    jinja2 = require("jinja2", extra="compare")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=" on ".join(names) or "Comparison",
        study=study,
        notice=STATES.get(str(study.get("state")), ""),
        verdict=said[0],
        advice=said[1:],
        board=[
            {
                "row": row,
                "arm": arm,
                "options": _pairs(row.options),
                "near": best is not None and overlap(best, row),
            }
            for row, arm in zip(entries, arms, strict=True)
        ],
        best=best,
        metric=metric,
        finite=math.isfinite,
        greater=data["greaterIsBetter"],
        whiskers=whiskers,
        quantities=QUANTITIES,
        has_curves=bool(curves),
        tuning=_tuning(board, rows, metric),
        runs=_runs(rows, metric),
        stages=list(dict.fromkeys(rows["stage"])),
        statuses=list(dict.fromkeys(rows["status"])),
        facts=_facts(study, rows),
        finished=_date(study.get("finished") or study.get("started")),
        results_url=_download(folder / "results.csv", "text/csv"),
        study_url=_download(folder / "compare.json", "application/json"),
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=digest,
        data=_json(data),
    )
    target = folder / "report.html"
    with atomic_write(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(build_report(name))
