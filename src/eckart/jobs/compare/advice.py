"""One plain sentence of advice, and what it rests on, from the leaderboard of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from eckart.jobs.compare.contenders import FULL, HEAD_ONLY, LORA
from eckart.jobs.compare.leaderboard import (
    BASELINES,
    QUANTITIES,
    UNBUDGETED,
    Metric,
    lead,
    leaderboard,
    metric_of,
    overlap,
)

if TYPE_CHECKING:
    import pandas as pd


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
