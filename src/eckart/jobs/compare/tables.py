"""The tables of the report page: learning rates tried, all runs, and what was run."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart.jobs.compare.leaderboard import Metric, Quantity, is_of, metric_named
from eckart.jobs.compare.names import TRIVIAL

if TYPE_CHECKING:
    import pandas as pd

    from eckart.jobs.compare.examples import Examples


def pairs(value: Any) -> str:
    """A JSON object, or the text of one, as ``r=8, alpha=16``."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value else {}
        except ValueError:
            return str(value)
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{key}={item}" for key, item in value.items() if item is not None)


def standing(row: Any) -> str:
    """What an arm of the board is, in a word or two; empty where it is a contender like others."""
    if row.state != "complete":
        return str(row.state)
    if row.collapsed:
        return "collapsed"
    return f"over --max-{row.over_limit}" if row.over_limit else "ruled out" if row.ruled_out else ""


def entry(row: Any, study: Mapping[str, Any], metric: Metric, held: str) -> dict[str, Any]:
    """What the page says of one arm of the board, held against another (see `reference`)."""
    words = shlex.split(str(study.get("command") or ""))
    command = ""
    if words and row.method != TRIVIAL:
        for option in ("--methods", "--output"):
            if option in words:
                del words[words.index(option) : words.index(option) + 2]
        command = shlex.join([*words, "--methods", row.method, "--output", f"eckart-{row.method}"])
    return {
        "options": pairs(row.options),
        "also": _also(row.also),
        "standing": standing(row),
        "dropped": dict(study.get("dropped") or {}).get(row.method, ""),
        "to_best": metric.change(row.to_best, row.to_best_low, row.to_best_high),
        "held": metric.change(*(getattr(row, f"to_{held}{end}") for end in ("", "_low", "_high"))),
        "held_value": getattr(row, f"to_{held}"),
        "rate": f"{row.lr:.2g}" if math.isfinite(row.lr) else "–",
        "command": command,
    }


def _also(text: str) -> str:
    """The other scores of an arm, each as its metric is shown."""
    found = json.loads(text or "{}").items()
    shown = ((metric_named(name), value) for name, value in found)
    return ", ".join(f"{metric.name} {metric.show(value)}" for metric, value in shown)


_BLOCK = re.compile(r"(?:^|\.)(\d+)\.")


def rank_maps(
    board: pd.DataFrame, rows: pd.DataFrame, ranks: Mapping[str, Mapping[str, int]]
) -> list[dict[str, Any]]:
    """Of each arm whose layers differ in rank a map, block by kind of layer: the mean over its final runs."""
    maps = []
    for row in board.itertuples():
        mine = is_of(rows, row)
        found = [ranks[run] for run in rows[mine & (rows["stage"] == "final")]["run_id"] if run in ranks]
        means = {layer: np.mean([one.get(layer, 0) for one in found]) for one in found for layer in one}
        if len(set(means.values())) < 2:
            continue
        cells: dict[str, dict[str, float]] = {}
        for layer, rank in means.items():
            block = _BLOCK.search(layer)
            name = layer[block.end() :] if block else layer
            cells.setdefault(block[1] if block else "", {})[name] = float(rank)
        kinds = list(dict.fromkeys(kind for line in cells.values() for kind in line))
        most = max(means.values())
        lines = [
            {
                "block": block,
                "cells": [
                    {"rank": f"{line[kind]:.3g}", "heat": f"{line[kind] / most:.2f}"}
                    if kind in line
                    else None
                    for kind in kinds
                ],
            }
            for block, line in cells.items()
        ]
        maps.append({"label": row.label, "kinds": kinds, "lines": lines})
    return maps


MOST_LABELS = 12
"""A table of more labels tells a reader nothing."""


def disagreements(board: pd.DataFrame, rows: pd.DataFrame, examples: Examples) -> dict[str, Any]:
    """Of each pair of arms the share of test examples that one gets right and the other not; accuracies only."""
    done = rows[(rows["stage"] == "final") & rows["run_id"].isin(list(examples.scores))]
    right: dict[str, np.ndarray] = {}
    for row in board.itertuples():
        mine = done[is_of(done, row)]
        if len(mine) and row.method != TRIVIAL and row.metric == "accuracy":
            right[row.label] = np.mean([examples.scores[run] for run in mine["run_id"]], axis=0) >= 0.5
    if len(right) < 2:
        return {"labels": []}
    table = np.array(list(right.values()))
    counts = table.sum(axis=0)
    cells = [["–" if a is b else f"{100 * (a & ~b).mean():.1f}" for b in table] for a in table]
    several = {"all": len(table), "none": 0, "one": 1}
    return {"labels": list(right), "rows": cells} | {
        name: f"{100 * (counts == number).mean():.1f} %" for name, number in several.items()
    }


def confusions(board: pd.DataFrame, rows: pd.DataFrame, examples: Examples) -> dict[str, Any]:
    """Of each arm the share of a label's test examples that it gives each label, over its seeds; few labels only."""
    names = sorted(set(examples.labels or ()))
    if not 2 <= len(names) <= MOST_LABELS:
        return {"names": []}
    truth, arms = np.array(examples.labels), []
    for row in board.itertuples():
        mine = is_of(rows, row)
        said = [np.array(examples.said[run]) for run in rows[mine]["run_id"] if run in examples.said]
        if said:
            shares = [
                [100 * np.mean([(each[truth == true] == given).mean() for each in said]) for given in names]
                for true in names
            ]
            arms.append({"label": row.label, "rows": [[f"{share:.1f}" for share in line] for line in shares]})
    return {"names": names, "arms": arms, "counts": [f"{(truth == name).sum():,}" for name in names]}


def date(text: Any) -> str:
    """A time as people write it; nothing where it is none."""
    try:
        return f"{datetime.fromisoformat(str(text)):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return ""


def tuning(board: pd.DataFrame, rows: pd.DataFrame, metric: Metric) -> list[dict[str, Any]]:
    """The learning rates tried for each method with their validation scores, and whether the best is at an end."""
    table = []
    for row in board.itertuples():
        mine = is_of(rows, row)
        tuned = rows[mine & (rows["stage"] == "tune")].sort_values(["lr", "steps"], kind="stable")
        if tuned.empty:
            continue
        trials = [
            {
                "lr": f"{run.lr:.3g}",
                "steps": f"{run.steps:.0f}" if math.isfinite(run.steps) else "",
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


def runs(rows: pd.DataFrame, metric: Metric, quantities: Mapping[str, Quantity]) -> list[dict[str, Any]]:
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
        for key, item in quantities.items():
            cells[key] = cell(getattr(run, key), item.show(getattr(run, key)))
        interval = metric.interval(run.ci_low, run.ci_high) if score[1] is not None else "–"
        table.append(
            {
                "id": run.run_id,
                "label": run.label,
                "method": run.method,
                "stage": run.stage,
                "status": run.status,
                "options": pairs(run.options),
                "cells": cells,
                "interval": interval,
                "error": run.error,
            }
        )
    return table


def facts(study: dict[str, Any], rows: pd.DataFrame) -> list[tuple[str, str]]:
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
        ("Options", pairs(study.get("options") or {})),
        (
            "Versions",
            ", ".join(f"{name} {version}" for name, version in (study.get("versions") or {}).items()),
        ),
        ("Machine", pairs(machine).replace("=", " ") if isinstance(machine, dict) else str(machine or "")),
        ("Started", date(study.get("started"))),
        ("Finished", date(study.get("finished"))),
        ("Fingerprint of model, data and options", str(task.get("fingerprint") or "")),
    ]
    return [(name, text) for name, text in facts if text]


def _span(counts: Iterable[int]) -> str:
    values = sorted(set(counts))
    return "" if not values else f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"
