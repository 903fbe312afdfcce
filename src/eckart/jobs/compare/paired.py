"""Paired differences between arms that share test examples and seeds, with two sources of luck: examples and seeds.

Of two arms a, b the difference of example i under seed k is d_ki; what examples and seeds do to both arms alike is not
in it. Over K common seeds and n examples

    Var d̄ = E + S,   E = Var_i(d̄_·i) / n  (by groups where examples come in groups),   S = (v_a + v_b) / K

v_a is the variance that seeds give to arm a alone, beside what they do to all arms: from the residuals of mean score =
arm + seed, shrunk towards all arms' (`shrunk_variances`). v_a + v_b is at least what single examples that seeds decide
bring by themselves, R = Var(d_ki − d̄_k· − d̄_·i + d̄) / n. E holds R/K as well: the intervals err to the wide side.

Sources: two-way random effects, Searle, Casella & McCulloch, Variance Components (1992); shrinkage of variances, Smyth,
Stat. Appl. Genet. Mol. Biol. 3 (2004); degrees of freedom, Satterthwaite (1946); many comparisons, Holm (1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from eckart.extras import require
from eckart.tasks.statistics import Z95, cluster_variance

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """By how much arm a is better than arm b, and how sure that is.

    Attributes:
        value: the mean difference.
        seeds: the seeds that both were run with.
        examples_variance: E, what more seeds leave.
        seed_variance: v_a + v_b, what one seed brings.
        degrees: of freedom of Student's distribution.
        level: at which it is judged; smaller than the study's where many are judged.
    """

    value: float
    seeds: int
    examples_variance: float
    seed_variance: float
    degrees: float
    level: float = LEVEL

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.variance(self.seeds))

    def variance(self, seeds: float, examples: float = 1.0) -> float:
        """Of the difference had it so many seeds, and so many times as many examples."""
        return self.examples_variance / examples + self.seed_variance / seeds

    @cached_property
    def p(self) -> float:
        """Two-sided: how likely so large a difference is where there is none."""
        if not self.standard_error:
            return 0.0 if self.value else 1.0
        student = require("scipy.stats", extra="compare").t
        return float(2 * student.sf(abs(self.value) / self.standard_error, self.degrees))

    @cached_property
    def factor(self) -> float:
        """Half the width of the interval in standard errors."""
        return float(require("scipy.stats", extra="compare").t.isf(self.level / 2, self.degrees))

    @property
    def low(self) -> float:
        return self.value - self.factor * self.standard_error

    @property
    def high(self) -> float:
        return self.value + self.factor * self.standard_error

    @property
    def told(self) -> int:
        """1 where arm a is better, −1 where it is worse, 0 where the two cannot be told apart."""
        return int(self.low > 0) - int(self.high < 0)


class Scores:
    """The scores of arms on the same test examples, larger is better.

    Args:
        means: of each run; NaN where there is none.
        examples: the scores of each run's examples, by (arm, seed); without them arms count as independent.
        errors: standard error of each arm's score over the examples, used where there are no scores of examples.
        groups: the number of each example's group; None where each stands for itself.
        fixed: arms that no seed changes: they have one run, which stands for every seed.
    """

    def __init__(
        self,
        means: Float[np.ndarray, "arms seeds"],
        examples: Mapping[tuple[int, int], Float[np.ndarray, " n"]],
        errors: Float[np.ndarray, " arms"],
        groups: Int[np.ndarray, " n"] | None = None,
        fixed: Sequence[int] = (),
    ) -> None:
        self.examples, self.errors, self.groups, self.fixed = examples, errors, groups, set(fixed)
        self.means = means.copy()
        for arm in fixed:
            self.means[arm] = np.nanmean(means[arm]) if np.isfinite(means[arm]).any() else np.nan
        moving = [arm for arm in range(len(means)) if arm not in self.fixed]
        self.variances, self.degrees = np.zeros(len(means)), np.full(len(means), math.inf)
        self.variances[moving], self.degrees[moving] = shrunk_variances(means[moving])

    def placed(self) -> Float[np.ndarray, " arms"]:
        """Each arm's score over all seeds; a missing seed is filled in by what it did to the arms that have it."""
        known = np.isfinite(self.means)
        some = known.any(axis=1)
        placed = np.full(len(self.means), -math.inf)
        placed[some] = np.nanmean(self.means[some], axis=1)
        seeds = known[some].any(axis=0)
        if known[some][:, seeds].all():
            return placed
        arms, columns = np.nonzero(known)
        effects = np.linalg.pinv(_design(arms, columns, self.means.shape)) @ self.means[arms, columns]
        whole = effects[: len(self.means), None] + effects[len(self.means) :][seeds]
        placed[some] = whole.mean(axis=1)[some]
        return placed

    def common(self, a: int, b: int) -> list[int]:
        """The seeds that two arms share."""
        both = np.isfinite(self.means[[a, b]]).all(axis=0)
        found = [int(seed) for seed in np.flatnonzero(both)]
        return found[:1] if {a, b} <= self.fixed else found

    def difference(self, a: int, b: int, level: float = LEVEL) -> Difference | None:
        """Arm a less arm b over their common seeds; None where they share none."""
        seeds = self.common(a, b)
        if not seeds:
            return None
        value = float((self.means[a, seeds] - self.means[b, seeds]).mean())
        left, least, freedom = self._examples_variance(a, b, seeds)
        own = float(self.variances[a] + self.variances[b])
        brought = max(own, least) if math.isfinite(own) else 0.0
        total = left + brought / len(seeds)
        parts = [(left, freedom)]
        if own == brought:
            parts += [(float(self.variances[arm]) / len(seeds), float(self.degrees[arm])) for arm in (a, b)]
        spread = sum(part**2 / df for part, df in parts)
        degrees = total**2 / spread if spread else math.inf
        return Difference(value, len(seeds), left, brought, max(degrees, 1.0), level)

    def _examples_variance(self, a: int, b: int, seeds: Sequence[int]) -> tuple[float, float, float]:
        """E, R and the degrees of freedom of E."""
        rows = [(self._of(a, seed), self._of(b, seed)) for seed in seeds]
        if any(one is None or other is None for one, other in rows):
            return float(self.errors[a] ** 2 + self.errors[b] ** 2), 0.0, math.inf
        table = np.array([one - other for one, other in rows])  # type: ignore[operator]
        count, n = table.shape
        mean = table.mean(axis=0)
        if self.groups is None:
            variance, degrees = float(mean.var(ddof=1)) / n if n > 1 else math.inf, float(n - 1)
        else:
            variance, degrees = cluster_variance(mean, self.groups), float(self.groups.max())
        # Where all examples agree, one more might not.
        variance = max(variance, float(np.abs(mean).max() / n) ** 2)
        inner = table - mean - table.mean(axis=1, keepdims=True) + mean.mean()
        least = float((inner**2).sum()) / ((count - 1) * (n - 1) * n) if count > 1 < n else 0.0
        return variance, least, max(degrees, 1.0)

    def _of(self, arm: int, seed: int) -> Float[np.ndarray, " n"] | None:
        if arm in self.fixed:
            return next((values for (of, _), values in self.examples.items() if of == arm), None)
        return self.examples.get((arm, seed))


def _design(
    arms: Int[np.ndarray, " runs"], seeds: Int[np.ndarray, " runs"], shape: tuple[int, ...]
) -> Float[np.ndarray, "runs effects"]:
    """Which arm and which seed each run has."""
    design = np.zeros((len(arms), sum(shape)))
    design[np.arange(len(arms)), arms] = design[np.arange(len(arms)), shape[0] + seeds] = 1.0
    return design


def shrunk_variances(
    means: Float[np.ndarray, "arms seeds"],
) -> tuple[Float[np.ndarray, " arms"], Float[np.ndarray, " arms"]]:
    """Variance that seeds give to each arm alone, and its degrees of freedom; NaN where no two arms share two seeds.

    ṽ_a = (d₀ v₀ + d_a v_a) / (d₀ + d_a),   d_a = Σ (1 − h),   v_a = Σ r² / d_a

    r and h are the residuals and leverages of mean = arm + seed over the runs of arm a. d₀ and v₀ follow from how far
    the log v_a lie apart beyond what their degrees of freedom explain; where they do not, ṽ_a is the pool's.

    Args:
        means: scores of runs; NaN where there is none.
    """
    arms, seeds = np.nonzero(np.isfinite(means))
    count = len(means)
    if not len(arms):
        return np.full(count, math.nan), np.full(count, math.inf)
    design = _design(arms, seeds, means.shape)
    hat = design @ np.linalg.pinv(design)
    values = means[arms, seeds]
    residuals = values - values.mean()
    residuals = residuals - hat @ residuals
    freedom = np.bincount(arms, 1.0 - np.diag(hat), count)
    freedom[freedom < 1e-9] = 0.0
    squares = np.bincount(arms, residuals**2, count)
    total = float(freedom.sum())
    if total < 0.5:
        return np.full(count, math.nan), np.full(count, math.inf)
    pool = float(squares.sum()) / total
    own = np.divide(squares, freedom, out=np.full(count, pool), where=freedom > 0)
    prior, centre = _prior(own[freedom > 0], freedom[freedom > 0], pool)
    if math.isinf(prior):
        return np.full(count, pool), np.full(count, total)
    shrunk = (prior * centre + freedom * own) / (prior + freedom)
    return shrunk, np.minimum(prior + freedom, total)


def _prior(
    own: Float[np.ndarray, " arms"], freedom: Float[np.ndarray, " arms"], pool: float
) -> tuple[float, float]:
    """d₀ and v₀ of `shrunk_variances`: ψ′(d₀/2) is how far the log-variances lie apart, less what d_a explains."""
    special = require("scipy.special", extra="compare")
    if len(own) < 3 or not pool:
        return math.inf, pool
    logs = np.log(np.maximum(own, 1e-6 * pool)) - special.digamma(freedom / 2) + np.log(freedom / 2)
    apart = float(logs.var(ddof=1) - special.polygamma(1, freedom / 2).mean())
    if apart <= 0:
        return math.inf, pool
    low, high = 1e-3, 1e6  # ψ′ falls from infinity to 0
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if special.polygamma(1, middle / 2) > apart else (low, middle)
    centre = math.exp(float(logs.mean()) + float(special.digamma(low / 2)) - math.log(low / 2))
    return low, centre


def holm(differences: Mapping[int, Difference], level: float = LEVEL) -> dict[int, Difference]:
    """The same differences, each with the level that Holm's procedure judges it at.

    The j-th smallest p of m is judged at level/(m − j + 1), and those after the first that fails at its level: so that
    an interval leaves zero out exactly where the procedure rejects.
    """
    order = sorted(differences, key=lambda key: differences[key].p)
    judged: dict[int, Difference] = {}
    share = level
    rejecting = True
    for place, key in enumerate(order):
        if rejecting:
            share = level / (len(order) - place)
        given = differences[key]
        judged[key] = Difference(
            given.value, given.seeds, given.examples_variance, given.seed_variance, given.degrees, share
        )
        rejecting = rejecting and judged[key].told != 0
    return {key: judged[key] for key in differences}


def error_of(low: float, high: float) -> float:
    """The standard error of a score from its 95% interval."""
    return (high - low) / (2 * Z95)
