"""Scores of a model on a split, as a score of each example whose mean is the score of all.

What a model says of an example is a row of numbers, its *outcome*; which, the kind of task says. A metric of means
(accuracy) scores each row. One of all rows together (macro-F1, a correlation) is made a mean by the jackknife: with θ
the score of all and θ₋ᵢ that without example i,

    sᵢ = θ + (n − 1) (θ̄ − θ₋ᵢ),   θ̄ = mean of the θ₋ᵢ

so that mean(s) = θ and s/√n is its standard error: intervals and paired differences are those of a mean. Above
`JACKKNIFE` examples, m together are left out at a time and their deviations are √m as large, which keeps the variance.

Source: Efron & Stein, The jackknife estimate of variance, Annals of Statistics 9 (1981).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

JACKKNIFE = 2000
"""Examples that are left out one at a time; of more, several together."""
Outcomes = Float[np.ndarray, "n k"]
Each = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Metric:
    """A score of outcomes: ``each`` of every example, or ``whole`` of all of them together.

    Attributes:
        name: in tables and files.
        each: the score of every example; its mean is the score.
        whole: the score of all, where it is no mean.
        greater_is_better: its direction.
    """

    name: str
    each: Callable[[Outcomes], Each] | None = None
    whole: Callable[[Outcomes], float] | None = None
    greater_is_better: bool = True

    def value(self, outcomes: Outcomes) -> float:
        """The score of all; NaN where there is none."""
        if self.whole is not None:
            return self.whole(outcomes) if np.isfinite(outcomes).all() else math.nan
        assert self.each is not None
        scores = self.each(outcomes)
        known = np.isfinite(scores)
        return float(scores[known].mean()) if known.any() else math.nan

    def scores(self, outcomes: Outcomes) -> Each:
        """The score of each example, or what each adds to the score of all."""
        if self.each is not None:
            return self.each(outcomes)
        assert self.whole is not None
        if not np.isfinite(outcomes).all():
            return np.full(len(outcomes), math.nan)
        return jackknife(self.whole, outcomes)


def jackknife(whole: Callable[[Outcomes], float], outcomes: Outcomes) -> Each:
    """What each example adds to a score of all: see the head of this file."""
    count = len(outcomes)
    score, blocks = whole(outcomes), min(count, JACKKNIFE)
    if count < 3:
        return np.full(count, score)
    block = np.arange(count) % blocks
    without = np.array([whole(outcomes[block != left]) for left in range(blocks)])
    sizes = np.bincount(block, minlength=blocks)
    deviations = (blocks - 1) * (without.mean() - without)
    spread = (np.sqrt(sizes) * deviations)[block]
    result: np.ndarray = score + spread - spread.mean()
    return result


def _logits(outcomes: Outcomes) -> Float[np.ndarray, "n c"]:
    """Of classes a row is the class and the logits."""
    return outcomes[:, 1:]


def classes_said(outcomes: Outcomes) -> np.ndarray:
    """The class of the greatest logit."""
    said: np.ndarray = _logits(outcomes).argmax(1)
    return said


def confusion(outcomes: Outcomes) -> Float[np.ndarray, "c c"]:
    """Counts of (class, class said)."""
    count = outcomes.shape[1] - 1
    cells = outcomes[:, 0].astype(int) * count + classes_said(outcomes)
    table: np.ndarray = np.bincount(cells, minlength=count**2).reshape(count, count).astype(float)
    return table


def right(outcomes: Outcomes) -> Each:
    """1 where the class is right, 0 where not; NaN where a logit is not finite."""
    scores: np.ndarray = (classes_said(outcomes) == outcomes[:, 0]).astype(float)
    scores[~np.isfinite(_logits(outcomes)).all(1)] = math.nan
    return scores


def macro_f1(outcomes: Outcomes) -> float:
    """Mean over the classes that occur or are said of F₁ = 2 tp / (2 tp + fp + fn)."""
    return _f1(confusion(outcomes))


def _f1(table: Float[np.ndarray, "c c"]) -> float:
    both = table.sum(0) + table.sum(1)
    return float((2 * np.diag(table)[both > 0] / both[both > 0]).mean())


def matthews(outcomes: Outcomes) -> float:
    """Matthews' correlation of class and class said (Gorodkin, 2004); 0 where one of them is constant."""
    table = confusion(outcomes)
    total, truth, said = table.sum(), table.sum(1), table.sum(0)
    spread = (total**2 - (said**2).sum()) * (total**2 - (truth**2).sum())
    return float((np.trace(table) * total - truth @ said) / math.sqrt(spread)) if spread > 0 else 0.0


def auroc(outcomes: Outcomes) -> float:
    """Area under the ROC curve, P(a positive scores above a negative), ties half; of more classes the mean of each
    against the rest, of those that occur."""
    logits = _logits(outcomes)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    columns = [1] if logits.shape[1] == 2 else range(logits.shape[1])
    areas = [_area(outcomes[:, 0] == column, shares[:, column]) for column in columns]
    return float(np.nanmean(areas)) if np.isfinite(areas).any() else 0.5


def _area(positive: np.ndarray, values: np.ndarray) -> float:
    count = int(positive.sum())
    rest = len(positive) - count
    if not count or not rest:
        return math.nan
    return float((ranks(values)[positive].sum() - count * (count + 1) / 2) / (count * rest))


def ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 1; equal values share their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    result: np.ndarray = (ends - (counts - 1) / 2)[place]
    return result


def pearson(outcomes: Outcomes) -> float:
    """Correlation of a number and the number said; 0 where one of them is constant."""
    return _correlation(outcomes[:, 0], outcomes[:, 1])


def spearman(outcomes: Outcomes) -> float:
    """Correlation of the ranks of the numbers and of those said; 0 where one of them is constant."""
    return _correlation(ranks(outcomes[:, 0]), ranks(outcomes[:, 1]))


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    norm = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norm if norm > 0 else 0.0


def rmse(outcomes: Outcomes) -> float:
    """Root of the mean square of number said less number, in the unit of the labels."""
    return math.sqrt(float(((outcomes[:, 1] - outcomes[:, 0]) ** 2).mean()))


def _labels(outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray]:
    """Of several labels a row is a 0 or 1 for each and its logits: which are there, which are said."""
    half = outcomes.shape[1] // 2
    return outcomes[:, :half] > 0, outcomes[:, half:] > 0


def labels_right(outcomes: Outcomes) -> Each:
    """The share of labels that are rightly said or not said, of each example; NaN where a logit is not finite."""
    truth, said = _labels(outcomes)
    scores: np.ndarray = (truth == said).mean(1)
    scores[~np.isfinite(outcomes).all(1)] = math.nan
    return scores


def all_labels_right(outcomes: Outcomes) -> Each:
    """1 where every label is right, of each example."""
    scores = labels_right(outcomes)
    return np.where(np.isfinite(scores), scores == 1, math.nan)


def labels_micro_f1(outcomes: Outcomes) -> float:
    """F₁ over all labels of all examples; 0 where none is there or said."""
    truth, said = _labels(outcomes)
    both = truth.sum() + said.sum()
    return float(2 * (truth & said).sum() / both) if both else 0.0


def labels_macro_f1(outcomes: Outcomes) -> float:
    """Mean of the F₁ of the labels that are there or said."""
    truth, said = _labels(outcomes)
    both = truth.sum(0) + said.sum(0)
    hits = (truth & said).sum(0)
    return float((2 * hits[both > 0] / both[both > 0]).mean()) if both.any() else 0.0


def labels_auroc(outcomes: Outcomes) -> float:
    """Mean over the labels of the area under their ROC curve, of those that some examples have and some have not."""
    half = outcomes.shape[1] // 2
    areas = [_area(outcomes[:, i] > 0, outcomes[:, half + i]) for i in range(half)]
    return float(np.nanmean(areas)) if np.isfinite(areas).any() else 0.5


def bits(outcomes: Outcomes) -> Each:
    """Of texts a row is the bits of its tokens and how many there are: the bits of a token, of each example."""
    result: np.ndarray = outcomes[:, 0] / outcomes[:, 1]
    return result


def tokens_right(outcomes: Outcomes) -> Each:
    """Of texts a third number is how many tokens are rightly said: their share; NaN where the bits are."""
    result: np.ndarray = outcomes[:, 2] / outcomes[:, 1]
    return np.where(np.isfinite(outcomes[:, 0]), result, math.nan)


def ratio_of_sums(outcomes: Outcomes) -> Each:
    """The first number of all over the second, such as bits over tokens, θ = Σb / Σt, as the mean of
    θ + (bᵢ − θ tᵢ) / t̄ (its linearisation)."""
    told, tokens = outcomes[:, 0], outcomes[:, 1]
    score = told.sum() / tokens.sum()
    result: np.ndarray = score + (told - score * tokens) / tokens.mean()
    return result


def counts_of(outcomes: Outcomes) -> Float[np.ndarray, "n c 3"]:
    """Of several things in an example a row is two numbers, then of each class how many are rightly said, are said and
    are there."""
    return outcomes[:, 2:].reshape(len(outcomes), -1, 3)


def counted_micro_f1(outcomes: Outcomes) -> float:
    """F₁ = 2 tp / (said + there) over the things of all classes; 0 where none is there or said."""
    both, said, there = counts_of(outcomes).sum((0, 1))
    return float(2 * both / (said + there)) if said + there else 0.0


def counted_macro_f1(outcomes: Outcomes) -> float:
    """Mean of the F₁ of the classes that are there or said; 0 where none is."""
    both, said, there = counts_of(outcomes).sum(0).T
    total = said + there
    return float((2 * both[total > 0] / total[total > 0]).mean()) if total.any() else 0.0


def column(place: int) -> Callable[[Outcomes], Each]:
    """A metric that is a number of the outcome itself."""
    return lambda outcomes: outcomes[:, place]


def by_name(*metrics: Metric) -> dict[str, Metric]:
    """Metrics by their names."""
    return {metric.name: metric for metric in metrics}
