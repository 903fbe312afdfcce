"""The answer of a comparison in one sentence, and what it rests on; all of it follows from the board's columns.

The answer is one of three: *use X*; *any of these k, X is the cheapest of them*; *not enough data yet*, with what would
settle it. See `answer` for when which is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from eckart.jobs.compare.judgement import COSTS, REFERENCES, Judgement, Terms, is_candidate, judge, unproven
from eckart.jobs.compare.leaderboard import BASELINES, QUANTITIES, UNBUDGETED, Metric, metric_of
from eckart.jobs.compare.names import DENSE, FULL, HEAD_ONLY, LORA, TRIVIAL
from eckart.jobs.compare.paired import Difference

if TYPE_CHECKING:
    import pandas as pd

    from eckart.jobs.compare.examples import Examples

NOT_YET = "Not enough data yet:"
MOST = 20
"""Seeds, or times as many examples, beyond which more of them alone are no advice."""


def join(items: Iterable[str]) -> str:
    """Words as a list in a sentence."""
    words = list(items)
    return "".join(words) if len(words) < 2 else f"{', '.join(words[:-1])} and {words[-1]}"


def _named(row: Any) -> str:
    return str(UNBUDGETED.get(row.method, row.label))


def _start(words: str) -> str:
    return words[:1].upper() + words[1:]


def _gap(difference: Difference, metric: Metric) -> str:
    return metric.margin(difference.value, difference.low, difference.high)


def cheapest(judgement: Judgement) -> tuple[Any, str]:
    """Which of the arms that are left costs least by the cost that the user cares for, and what it costs."""
    column = COSTS[judgement.terms.cost]
    known = [row for row in judgement.left if math.isfinite(getattr(row, column))]
    row = min(known, key=lambda row: getattr(row, column)) if known else judgement.left[0]
    quantity = QUANTITIES[column]
    value = float(getattr(row, column))
    return row, f"{quantity.title.lower()} {quantity.show(value)}" if math.isfinite(value) else ""


def remedy(row: Any, judgement: Judgement) -> str:
    """What would settle what `unproven` says."""
    if row.state == "partial":
        return f"about {max(1, row.seeds_run - row.seeds)} more seeds would settle it"
    if not row.tuned or row.edge:
        where = f" {row.edge}" if row.edge else ""
        return f"a run of its{where} learning rates would settle it"
    return "about 1 more seed would settle it"


def more(difference: Difference, tolerance: float) -> str:
    """How much more data would tell two arms apart, or show them as good: at the differences seen so far."""
    width = max(abs(difference.value), tolerance - difference.value)
    wanted = (width / difference.factor) ** 2
    if not wanted:
        return "more test examples"
    seeds, left = difference.seeds, wanted - difference.variance(difference.seeds, math.inf)
    if wanted > difference.examples_variance and difference.seed_variance:
        needed = math.ceil(difference.seed_variance / (wanted - difference.examples_variance))
        if needed - seeds <= MOST:
            extra = max(1, needed - seeds)
            return f"about {extra} more seed{'s' if extra > 1 else ''}"
    if left > 0 and difference.examples_variance / left <= MOST:
        return f"about {difference.examples_variance / left:.2g} times the test examples"
    factor = difference.variance(seeds) / wanted
    return f"about {factor:.2g} times the seeds and test examples"


def answer(judgement: Judgement) -> str:
    """The answer.

    *Use X* where X is told apart from every other candidate, was tuned with its best rate between others that were
    tried, was trained with two seeds or more of which none was lost, beats the trivial predictor, and no candidate is
    still to be tested; *use X, of the k methods tested* where the race dropped others by their tuning alone. *Any of
    these* where every arm that is left keeps all but `TOLERANCE` of the best's gain.
    """
    board, metric = judgement.board, metric_of(judgement.board)
    if judgement.best is None:
        return _without_scores(judgement)
    best, left = judgement.rows[judgement.best], judgement.left
    waiting = _waiting(judgement)
    shown = f"{metric.name} {metric.show(best.score)}"
    if best.collapsed:
        trivial = board[board["method"] == TRIVIAL]["label"].iloc[0]
        most = float(board["steps"].max())
        steps = f"about {2 * most:.0f} steps" if most > 0 else "more steps"
        return (
            f"{NOT_YET} no method does better than {trivial}; {steps} a run, or larger learning rates, "
            "would settle whether one can."
        )
    if waiting:
        return f"{NOT_YET} {best.label} leads ({shown}), but {_untested(waiting)}; more time would settle it."
    total = len(judgement.candidates)
    if len(left) == 1 and total > 1:
        if reason := unproven(best):
            return f"{NOT_YET} {best.label} leads ({shown}), but {reason}; {remedy(best, judgement)}."
        return _use(judgement, best, metric)
    if total == 1:
        return (
            f"{NOT_YET} {best.label} is the only method with a test score ({shown}); compare others with it."
        )
    return _several(judgement, best, metric)


def _use(judgement: Judgement, best: Any, metric: Metric) -> str:
    rivals = [row for row in judgement.candidates if row.Index != best.Index]
    behind = judgement.against["best"]
    among = f", of the {len(rivals) + 1} methods tested" if _untried(judgement) else ""
    closest = min(rivals, key=lambda row: behind[row.Index].low)
    others = f"the {len(rivals)} others" if len(rivals) > 1 else closest.label
    return (
        f"Use {best.label}{among}: {metric.name} {metric.show(best.score)}, ahead of {others}"
        f"{f', of {_named(closest)} by' if len(rivals) > 1 else ' by'} {_gap(behind[closest.Index], metric)}."
    )


def _several(judgement: Judgement, best: Any, metric: Metric) -> str:
    left, open_, total = judgement.left, judgement.open(), len(judgement.candidates)
    crowd = f"{len(left)} of {total} methods" if len(left) < total else f"the {total} methods"
    trained = [row for row in left if math.isfinite(row.lr)]
    if trained and all(row.seeds < 2 for row in trained):
        return (
            f"{NOT_YET} {best.label} leads ({metric.name} {metric.show(best.score)}), but {crowd} are not told apart "
            "and each was trained with a single seed; about 1 more seed would say more."
        )
    if open_:
        row, difference = max(open_, key=lambda item: item[1].high - item[1].low)
        return (
            f"{NOT_YET} {crowd} cannot be told apart, and {_named(row)} may be behind {best.label} by up to "
            f"{metric.amount(difference.high)}; {more(difference, judgement.tolerance)} would settle it."
        )
    choice, cost = cheapest(judgement)
    caveat = unproven(choice)
    return (
        f"Any of these {len(left)}: {join(row.label for row in left)}; {choice.label} is the cheapest of them"
        f"{f' ({cost})' if cost else ''}{f', though {caveat}' if caveat else ''}."
    )


def _waiting(judgement: Judgement) -> list[Any]:
    """Candidates that are still to be tested."""
    return [
        row
        for row in judgement.rows
        if row.state == "pending" and (row.method == HEAD_ONLY or row.method not in UNBUDGETED)
    ]


def _untried(judgement: Judgement) -> list[Any]:
    """What the race dropped by its tuning runs alone: methods without a test score, which may be as good as any."""
    return [row for row in judgement.rows if row.state == "dropped" and row.method not in UNBUDGETED]


def _untested(waiting: list[Any]) -> str:
    return f"{join(row.label for row in waiting)} {'is' if len(waiting) == 1 else 'are'} still to be tested"


def _without_scores(judgement: Judgement) -> str:
    if not len(judgement.board):
        return f"{NOT_YET} no run has finished."
    if waiting := _waiting(judgement):
        return f"{NOT_YET} {_untested(waiting)}."
    over = [row.label for row in judgement.rows if row.over_limit and math.isfinite(row.score)]
    if over:
        return (
            f"{NOT_YET} no method keeps the limits, {join(over)} do not; raise a limit or lower the budget."
        )
    lost = join(f"{row.label} ({row.state})" for row in judgement.rows if row.method not in UNBUDGETED)
    return f"{NOT_YET} no method at the budget has a test score{lost and f', {lost}'}."


def _against(judgement: Judgement, word: str, method: str | None) -> str:
    """How every arm stands to a baseline; the best arm as the board says."""
    baseline = next(
        (row for row in judgement.rows if row.method == method and math.isfinite(row.score)), None
    )
    if baseline is None:
        return ""
    told = {place: found.told for place, found in judgement.against[word].items()}
    behind = judgement.against["best"]
    if judgement.best is not None and baseline.Index in behind:
        told[judgement.best] = behind[baseline.Index].told
    arms = [row for row in judgement.rows if row.method not in UNBUDGETED and row.Index in told]
    ahead, level, worse = ([row.label for row in arms if told[row.Index] == sign] for sign in (1, 0, -1))
    name = _start(_named(baseline))
    said = []
    if worse:
        said.append(f"is ahead of {_all(worse, arms)}")
    if level:
        said.append(f"cannot be told apart from {_all(level, arms)}")
    if ahead:
        said.append(f"is behind {_all(ahead, arms)}")
    times = ""
    if method == FULL and judgement.best is not None:
        trained = judgement.rows[judgement.best].trained_parameters
        if baseline.trained_parameters > trained > 0:
            times = f"; it trains {baseline.trained_parameters / trained:,.0f} times as many parameters as the best"
    return f"{name} {join(said)}{times}." if said else ""


def _all(labels: list[str], arms: list[Any]) -> str:
    if len(labels) == len(arms) > 2:
        return f"all {len(arms)} methods"
    return join(labels)


def sentences(judgement: Judgement) -> list[str]:
    """The answer, and then what it rests on, sentence by sentence."""
    said = [answer(judgement)]
    if judgement.best is None:
        return said
    rows, metric, best = judgement.rows, metric_of(judgement.board), judgement.rows[judgement.best]
    behind = judgement.against["best"]
    out = [row for row in judgement.candidates if row.ruled_out]
    if out and len(judgement.left) > 1:
        said.append(f"Ruled out, behind {best.label}: {join(row.label for row in out)}.")
    lora = next((row for row in rows if row.method == LORA and is_candidate(row)), None)
    if lora is not None and lora.Index in behind and behind[lora.Index].told:
        said.append(f"{best.label} is ahead of {lora.label} by {_gap(behind[lora.Index], metric)}.")
    said += [_against(judgement, word, REFERENCES[word]) for word in ("head", "full", "dense")]
    said += _remarks(judgement, rows)
    return [sentence for sentence in said if sentence]


def _remarks(judgement: Judgement, rows: list[Any]) -> list[str]:
    scored = [row for row in rows if math.isfinite(row.score) and row.method != TRIVIAL]
    said = []
    collapsed = [row.label for row in scored if row.collapsed]
    if collapsed and len(collapsed) < len(scored):
        trivial = next(row.label for row in rows if row.method == TRIVIAL)
        said.append(f"Collapsed, since no better than {trivial}: {join(collapsed)}.")
    over = [f"{row.label} (--max-{row.over_limit})" for row in scored if row.over_limit]
    if over:
        said.append(f"Over your limits: {join(over)}.")
    if early := [row.label for row in _untried(judgement)]:
        which = "any of them" if len(early) > 1 else "it"
        said.append(f"Dropped in tuning, and not tested: {join(early)}; {which} may be as good.")
    there = set(judgement.board["method"])
    absent = [name for name in BASELINES[:3] if name not in there]
    if absent and DENSE not in there:
        names = {**UNBUDGETED, LORA: "LoRA"}
        said.append(f"Not compared with {join(names[name] for name in absent)}: there is no such run.")
    missing = [
        f"{row.label} ({row.state})"
        for row in rows
        if math.isnan(row.score) and row.state not in ("pending", "dropped")
    ]
    if missing:
        said.append(f"Without a test score: {join(missing)}.")
    edges = [row.label for row in scored if row.edge]
    if edges:
        said.append(f"The best learning rate is the largest or smallest tried: {join(edges)}.")
    if any(math.isfinite(row.lr) for row in scored) and not any(row.seeds > 1 for row in scored):
        said.append("Only one seed was run: the intervals cover the test examples, not the luck of training.")
    lost = [f"{r.label} ({r.seeds_run - r.seeds} of {r.seeds_run})" for r in scored if r.state == "partial"]
    if lost:
        said.append(f"Runs that diverged or failed and are not in the score: {join(lost)}.")
    return said


def advice(results: pd.DataFrame, examples: Examples | None = None, terms: Terms | None = None) -> str:
    """What the runs say one should use, in plain sentences: see `answer`.

    Args:
        results: one row for each run, as ``results.csv`` holds them.
        examples: the scores of the test examples, as `eckart.jobs.compare.examples.read_examples` reads them.
        terms: the level, and the user's limits and costs.

    Raises:
        InputError: a needed column is missing.
    """
    return " ".join(sentences(judge(results, examples, terms)))
