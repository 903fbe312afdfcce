"""From the runs of a comparison to its judgement: the board, and which arms the runs tell apart.

Every pair is judged by its paired difference (`paired`); the comparisons of all arms with one are a family, for which
Holm's procedure pays. What the board shows as an interval and what the advice says of it are the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart.jobs.compare.examples import Examples
from eckart.jobs.compare.leaderboard import UNBUDGETED, is_of, leaderboard, metric_of, tidy
from eckart.jobs.compare.names import DENSE, FULL, HEAD_ONLY, LORA, TRIVIAL
from eckart.jobs.compare.paired import LEVEL, Difference, Scores, error_of, holm

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 0.25
"""Two arms are as good as each other where the one is shown to keep all but this share of the other's gain over the
trivial predictor (over the worst arm where there is none)."""
COSTS = {"bytes": "saved_bytes", "memory": "peak_memory_mb", "step-time": "step_time_ratio"}
"""What a user may care for, and limit: the option's word, and the column of the board."""
REFERENCES = {"best": None, "lora": LORA, "head": HEAD_ONLY, "full": FULL, "dense": DENSE}
POCOCK = {1: 0.05, 2: 0.0294, 3: 0.0221, 4: 0.0182, 5: 0.0158, 6: 0.0142, 7: 0.0130, 8: 0.0120, 9: 0.0112}
"""Level of each of so many looks that together err in 5 % of studies (Pocock, Biometrika 64, 1977)."""


def look_level(looks: int) -> float:
    """The level of a look of so many; 5 % over their number where there are more than the table has."""
    return POCOCK.get(max(1, looks), LEVEL / max(1, looks))


@dataclass(frozen=True)
class Terms:
    """How a comparison is judged.

    Args:
        level: of each look at the runs.
        at_most: the user's limits, by the words of `COSTS`; arms over one are no candidates.
        cost: what the cheapest is cheapest by.
        dropped: arms that the race dropped, with when and why.
    """

    level: float = LEVEL
    at_most: Mapping[str, float] = field(default_factory=dict)
    cost: str = "bytes"
    dropped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """The board with what its arms are to each other.

    Attributes:
        board: as `leaderboard`, with the differences to the best arm, to LoRA and to the dense model and their
            intervals, and ``over_limit``, ``edge``, ``tuned`` and ``collapsed``.
        best: position of the best candidate on the board; None where none has a score.
        against: by reference (`REFERENCES`, ``trivial``) and position, the difference of that arm to the reference; of
            ``best`` the best arm's to that one.
        terms: it was judged by.
    """

    board: pd.DataFrame
    best: int | None
    against: Mapping[str, Mapping[int, Difference]]
    terms: Terms

    @property
    def rows(self) -> list[Any]:
        return list(self.board.itertuples())

    @property
    def candidates(self) -> list[Any]:
        """Arms with a score that could be the answer: those at the budget and the head alone, within the limits."""
        return [row for row in self.rows if is_candidate(row)]

    @property
    def left(self) -> list[Any]:
        """The candidates that cannot be told from the best, the best first."""
        behind = self.against["best"]
        return [
            row
            for row in self.candidates
            if row.Index == self.best or (row.Index in behind and behind[row.Index].told <= 0)
        ]

    @property
    def tolerance(self) -> float:
        """How much less counts as as good."""
        if self.best is None:
            return 0.0
        rows = self.rows
        scores = [row.score for row in rows if math.isfinite(row.score)]
        trivial = [row.score for row in rows if row.method == TRIVIAL]
        best = rows[self.best].score
        floor = trivial[0] if trivial else min(scores) if rows[self.best].greater_is_better else max(scores)
        return TOLERANCE * abs(float(best - floor))

    def open(self) -> list[tuple[Any, Difference]]:
        """What is left beside the best and not shown to be as good, with its difference."""
        behind = self.against["best"]
        beside = [row for row in self.left if row.Index != self.best]
        return [(row, behind[row.Index]) for row in beside if behind[row.Index].high > self.tolerance]

    @property
    def settled(self) -> bool:
        """Whether more seeds would not change the kind of answer."""
        if self.best is None or len(self.candidates) < 2 or self.rows[self.best].collapsed:
            return False
        return not self.open() and (len(self.left) > 1 or not unproven(self.rows[self.best]))

    def reasons(self) -> dict[str, str]:
        """Why arms need no more seeds: told apart from the best, or over a limit."""
        if self.best is None:
            return {}
        metric, best = metric_of(self.board), self.rows[self.best].label
        told = {row.method: f"over --max-{row.over_limit}" for row in self.rows if row.over_limit}
        for place, found in self.against["best"].items():
            if found.told:
                where = "behind" if found.told > 0 else "ahead of"
                told[self.rows[place].method] = f"{where} {best} by {metric.amount(abs(found.value))}"
        return told


def reference(board: pd.DataFrame) -> tuple[str, str]:
    """Whom the board holds every arm against besides the best, and its name: the dense model where it takes part."""
    return ("dense", "the dense model") if DENSE in set(board["method"]) else ("lora", "LoRA")


def unproven(row: Any) -> str:
    """Why an arm is not to be recommended yet, whatever its score; empty where nothing speaks against it."""
    if row.state == "partial":
        return f"{row.seeds_run - row.seeds} of its {row.seeds_run} runs on the test split diverged or failed"
    if not row.tuned:
        return "its learning rate is not tuned"
    if row.edge:
        return f"its best learning rate is the {'largest' if row.edge == 'larger' else 'smallest'} tried"
    if row.seeds < 2 and math.isfinite(row.lr):
        return "it was trained with a single seed"
    return ""


def is_candidate(row: Any) -> bool:
    """Whether a row of the board could be the answer."""
    budgeted = row.method == HEAD_ONLY or row.method not in UNBUDGETED
    return budgeted and math.isfinite(row.score) and not row.over_limit


def judge(results: pd.DataFrame, examples: Examples | None = None, terms: Terms | None = None) -> Judgement:
    """Judge the runs of a comparison.

    Args:
        results: one row for each run, as ``results.csv`` holds them.
        examples: scores of the test examples; without them arms count as independent, which tells fewer apart.
        terms: how; the plain ones when None.

    Raises:
        InputError: a needed column is missing.
    """
    terms, examples = terms or Terms(), examples or Examples()
    board, rows = leaderboard(results), tidy(results)
    board = board.assign(over_limit=[_over(row, terms) for row in board.itertuples()])
    early = (board["state"] == "pending") & board["method"].isin(list(terms.dropped))
    board.loc[early, "state"] = "dropped"
    board["tuned"], board["edge"] = _tuning(board, rows)
    scores, order = _scores(board, rows, examples)
    placed = np.argsort(-order, kind="stable")
    board = board.iloc[placed].reset_index(drop=True)
    board["rank"] = np.arange(1, len(board) + 1)
    numbers = {place: int(arm) for place, arm in enumerate(placed)}
    found = list(board.itertuples())
    best = next((row.Index for row in found if is_candidate(row)), None)
    against = _families(found, best, scores, numbers, terms.level)
    return Judgement(_with_columns(board, best, against), best, against, terms)


def _over(row: Any, terms: Terms) -> str:
    """Which of the user's limits an arm does not keep."""
    known = {word: getattr(row, COSTS[word]) for word in terms.at_most}
    return next((word for word, value in known.items() if value > terms.at_most[word]), "")


def _tuning(board: pd.DataFrame, rows: pd.DataFrame) -> tuple[list[bool], list[str]]:
    """Of each arm whether several rates were tried, and whether the best lies at an end of them."""
    tuned, edges = [], []
    for row in board.itertuples():
        mine = is_of(rows, row)
        rates = rows[mine & (rows["stage"] == "tune")]["lr"].dropna().unique()
        fixed = not math.isfinite(row.lr) and math.isfinite(row.score)
        tuned.append(fixed or len(rates) > 2)
        ends = {rates.min(): "smaller", rates.max(): "larger"} if len(rates) > 1 else {}
        edges.append(ends.get(row.lr, ""))
    return tuned, edges


def _scores(board: pd.DataFrame, rows: pd.DataFrame, examples: Examples) -> tuple[Scores, np.ndarray]:
    """The arms' scores, larger is better, and the score that places each: over all seeds, missing ones filled in by the
    arm's differences on those it has."""
    done = rows[(rows["stage"] == "final") & (rows["status"] == "complete")]
    seeds = {seed: place for place, seed in enumerate(sorted(done["seed"].fillna(0).unique()))}
    means = np.full((len(board), max(1, len(seeds))), math.nan)
    kept: dict[tuple[int, int], np.ndarray] = {}
    fixed, errors = [], np.zeros(len(board))
    sizes = [len(values) for values in examples.scores.values()]
    for row in board.itertuples():
        mine = done[is_of(done, row)]
        sign = 1.0 if row.greater_is_better else -1.0
        for run in mine.itertuples():
            place = seeds[run.seed if math.isfinite(run.seed) else 0]
            means[row.Index, place] = sign * run.score
            values = examples.scores.get(run.run_id)
            if values is not None and len(values) == sizes[0]:
                kept[row.Index, place] = sign * values
        if len(mine):
            spans = [error_of(run.ci_low, run.ci_high) for run in mine.itertuples()]
            errors[row.Index] = np.mean(spans) if np.isfinite(spans).all() else math.inf
            if (mine["steps"] == 0).all():
                fixed.append(row.Index)
    groups = (
        examples.groups if kept and examples.groups is not None and len(examples.groups) == sizes[0] else None
    )
    scores = Scores(means, kept, errors, groups, fixed)
    return scores, scores.placed()


def _families(
    found: list[Any], best: int | None, scores: Scores, numbers: Mapping[int, int], level: float
) -> dict[str, dict[int, Difference]]:
    """The differences of all arms to each reference, judged as families."""
    scored = [row.Index for row in found if math.isfinite(row.score)]
    named = {
        word: next((r.Index for r in found if r.method == method), None)
        for word, method in REFERENCES.items()
    }
    named |= {"best": best, "trivial": next((r.Index for r in found if r.method == TRIVIAL), None)}
    trivial = named["trivial"]
    against: dict[str, dict[int, Difference]] = {}
    for word, reference in named.items():
        pairs: dict[int, Difference] = {}
        for place in scored:
            if reference is None or place in (reference, trivial) or reference not in scored:
                continue
            first, second = (reference, place) if word == "best" else (place, reference)
            difference = scores.difference(numbers[first], numbers[second])
            if difference is not None:
                pairs[place] = difference
        against[word] = holm(pairs, level)
    return against


def _with_columns(
    board: pd.DataFrame, best: int | None, against: Mapping[str, Mapping[int, Difference]]
) -> pd.DataFrame:
    """The board with its differences in the metric's own sense: what is added to the reference's score."""
    sign = 1.0 if not len(board) or bool(board["greater_is_better"].iloc[0]) else -1.0
    board = board.copy()
    for word, turn in (("best", -1.0), ("lora", 1.0), ("dense", 1.0)):
        ends = [against[word].get(place) for place in range(len(board))]
        values = [math.nan if d is None else sign * turn * d.value for d in ends]
        halves = [math.nan if d is None else d.factor * d.standard_error for d in ends]
        board[f"to_{word}"] = values
        board[f"to_{word}_low"] = np.array(values) - halves
        board[f"to_{word}_high"] = np.array(values) + halves
    behind, beats = against["best"], against["trivial"]
    board["ruled_out"] = [place in behind and behind[place].told > 0 for place in range(len(board))]
    board["collapsed"] = [place in beats and beats[place].told <= 0 for place in range(len(board))]
    return board
