"""The paired rule of `eckart compare` covers at 95 % and tells more arms apart than intervals that must not meet.

Simulated studies: ten arms, each example of the test split right or wrong under each seed, with the sources of luck
that real runs showed on the embedded set. Of the variance over seeds 7.1 points² are shared by all arms and 2.5 an
arm's own; correctness correlates about 0.8 between arms. z = arm + example + seed + arm·seed + rest, right where z > 0.

With *tuning*, every arm has three learning rates, of which one is right; half as long a run on 320 validation examples
at each tells it, and how well an arm does early is not quite how it ends. The product's own race is beside the grid.

Rules: *meet* says "use" where the best arm's 95 % interval meets no other (the rule of version 0.1); *own* tests paired
differences with each pair's own variance over seeds; *pooled* is the product's: shrunk variances, and Holm's procedure.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from benchmarks._harness import table
from eckart.jobs.compare.contender import Contender
from eckart.jobs.compare.contenders import SPACING, spaced
from eckart.jobs.compare.judgement import look_level
from eckart.jobs.compare.names import LORA
from eckart.jobs.compare.paired import LEVEL, Scores, holm
from eckart.jobs.compare.plan import TUNE
from eckart.jobs.compare.runs import COLUMNS
from eckart.jobs.compare.study import Run
from eckart.tasks.statistics import interval
from evidence._record import Rows
from evidence._studies import grid, judged, named, race, tested

SHARED, OWN = 7.1, 2.5
EXAMPLE, REST = 0.95, 0.05
"""Shares of the variance of z that an example, and an example under an arm and a seed, bring."""
MIDDLE = float(np.sqrt(EXAMPLE + REST)) * 0.6744897501960817
"""Three in four are above zero."""
SLOPE = 100 * 0.31777657 / float(np.sqrt(EXAMPLE + REST))
"""Points of accuracy for one of z."""
ARMS = 10
RATES = spaced(1e-3, 3)
CHANCES = (0.25, 0.5, 0.25)
"""How often each rate is the right one of an arm."""
WRONG_RATE, EARLY, VALIDATION = 4.0, 2.5, 320
"""Points that a neighbour of the right rate loses; points by which an early standing strays, as the real runs of
`real_studies` do; and validation examples."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """How many studies."""
    parser.add_argument("--studies", type=int, default=400)


def own_width(examples: int) -> float:
    """The deviation of z that a seed brings to an arm alone, of whose variance the rest brings a part by itself."""
    noise = 100**2 * 2 * 0.0487 / examples
    return float(np.sqrt(max(OWN - noise / 2, 0.3))) / SLOPE


def studies(
    generator: np.random.Generator,
    count: int,
    ahead: np.ndarray,
    seeds: int,
    examples: int,
    unequal: float = 0.0,
) -> Iterator[np.ndarray]:
    """Studies as arrays of right and wrong, (arms, seeds, examples).

    Args:
        generator: of the randomness.
        count: of studies.
        ahead: of each arm, in points of accuracy.
        seeds, examples: of each study.
        unequal: spread of the logarithm of the variance that seeds bring to an arm alone.
    """
    normal = generator.standard_normal
    for _ in range(count):
        widths = own_width(examples) * np.exp(unequal * normal((len(ahead), 1, 1)) / 2)
        z = MIDDLE + ahead[:, None, None] / SLOPE + np.sqrt(EXAMPLE) * normal(examples)
        z = z + np.sqrt(SHARED) / SLOPE * normal((1, seeds, 1)) + widths * normal((len(ahead), seeds, 1))
        yield (z + np.sqrt(REST) * normal((len(ahead), seeds, examples)) > 0).astype(float)


def scores(right: np.ndarray, groups: np.ndarray | None = None) -> Scores:
    """A study as the product reads it."""
    arms, seeds, _ = right.shape
    examples = {(a, k): right[a, k] for a in range(arms) for k in range(seeds)}
    return Scores(right.mean(axis=2), examples, np.zeros(arms), groups)


def pooled(right: np.ndarray) -> tuple[int, list[int]]:
    """The best arm, and those that the product's rule does not tell from it."""
    study = scores(right)
    best = int(study.means.mean(axis=1).argmax())
    rivals = {a: study.difference(best, a) for a in range(len(right)) if a != best}
    judged = holm({a: found for a, found in rivals.items() if found is not None})
    return best, [a for a, found in judged.items() if found.told <= 0]


def own(right: np.ndarray) -> tuple[int, list[int]]:
    """The same with each pair's own variance over seeds, examples and seeds as two sources."""
    arms, seeds, n = right.shape
    best = int(right.mean(axis=(1, 2)).argmax())
    left = []
    for other in range(arms):
        if other == best:
            continue
        d = right[best] - right[other]
        e, s = d.mean(axis=0).var(ddof=1) / n, d.mean(axis=1).var(ddof=1) / seeds
        degrees = (e + s) ** 2 / (e**2 / (n - 1) + s**2 / (seeds - 1))
        if d.mean() < student.isf(LEVEL / (arms - 1) / 2, degrees) * np.sqrt(e + s):
            left.append(other)
    return best, left


def meet(right: np.ndarray) -> tuple[int, list[int]]:
    """The rule of version 0.1: intervals of single scores that meet."""
    _, seeds, n = right.shape
    means = right.mean(axis=2)
    e = (means * (1 - means)).mean(axis=1) / n
    s = means.var(axis=1, ddof=1) / seeds
    degrees = (e + s) ** 2 * (seeds - 1) / np.maximum(s, 1e-12) ** 2
    half = student.ppf(0.975, degrees) * np.sqrt(e + s)
    middle = means.mean(axis=1)
    best = int(middle.argmax())
    low = middle[best] - half[best]
    return best, [a for a in range(len(right)) if a != best and middle[a] + half[a] >= low]


CASES = (("equal", 0.0), ("two tie", 8.0), ("ahead", 6.0), ("normal", 3.0))
RULES = {"meet": meet, "own": own, "pooled": pooled}


def truth(kind: str, points: float) -> np.ndarray:
    """By how many points each arm is ahead; the first is never behind."""
    ahead = np.zeros(ARMS)
    ahead[: 2 if kind == "two tie" else 1] = points
    if kind == "spread":
        return np.linspace(points, 0, ARMS)
    return points * norm.isf((np.arange(ARMS) + 0.5) / ARMS) if kind == "normal" else ahead


def seeds_alone(right: np.ndarray, level: float) -> tuple[int, list[int], int]:
    """Seed by seed from two on, arms dropped that are told from the best, until one is left: best, rest, runs."""
    arms, seeds, _ = right.shape
    alive, runs, have = set(range(arms)), 0, np.zeros((arms, seeds), dtype=bool)
    best, left = 0, list(range(1, arms))
    for seed in range(seeds):
        have[list(alive), seed] = True
        runs += len(alive)
        if seed == 0:
            continue
        means = np.where(have, right.mean(axis=2), np.nan)
        examples = {(a, k): right[a, k] for a, k in zip(*np.nonzero(have), strict=True)}
        study = Scores(means, examples, np.zeros(arms))
        best = int(study.placed().argmax())
        rivals = {a: study.difference(best, a) for a in range(arms) if a != best}
        judged = holm({a: found for a, found in rivals.items() if found is not None}, level)
        left = [a for a, found in judged.items() if found.told <= 0]
        alive = {best, *left}
        if not left:
            break
    return best, left, runs


def races(count: int) -> Rows:
    """The race over at most five seeds beside the grid of five: what it names wrongly, what is left, and its runs."""
    found: Rows = []
    for kind, points in CASES:
        sums = np.zeros(6)
        for right in studies(np.random.default_rng(19), count, truth(kind, points), 5, 735):
            for place, (best, left, runs) in enumerate(
                (seeds_alone(right, look_level(4)), (*pooled(right), 5 * ARMS))
            ):
                wrong = not left and (kind in ("equal", "two tie") or best != 0)
                sums[3 * place : 3 * place + 3] += (wrong, 1 + len(left), runs)
        for rule, (wrong, size, runs) in zip(("race", "grid"), (sums / count).reshape(2, 3), strict=True):
            row = {"part": "race", "arms": kind, "points": points, "rule": rule}
            found.append(row | {"wrong use": wrong, "set": size, "runs": runs})
    return found


class Simulated:
    """The luck of one study with learning rates to find.

    Args:
        generator: of the randomness.
        ahead: by how many points each arm is at its right rate.
        seeds, examples: of the test split.
    """

    groups = None

    def __init__(self, generator: np.random.Generator, ahead: np.ndarray, seeds: int, examples: int) -> None:
        names = (LORA, *(f"arm-{i}" for i in range(1, len(ahead))))
        normal = generator.standard_normal
        self.contenders = [Contender(name, name, RATES) for name in names]
        self.ahead = dict(zip(names, generator.permutation(ahead), strict=True))
        self.right = dict(zip(names, generator.choice(RATES, len(names), p=CHANCES), strict=True))
        self.early = dict(zip(names, EARLY * normal(len(names)), strict=True))
        self.shared = np.sqrt(SHARED) / SLOPE * normal(seeds + 1)  # the last is that of tuning
        self.test, self.validation = (np.sqrt(EXAMPLE) * normal(n) for n in (examples, VALIDATION))
        self.own, self.generator = own_width(examples), generator
        self.known: dict[tuple[str, int], np.ndarray] = {}

    @property
    def truth(self) -> set[str]:
        """The arms that none is ahead of."""
        return {name for name, points in self.ahead.items() if points == max(self.ahead.values())}

    def answer(self, run: Run) -> Mapping[str, Any]:
        method, seed, rate = (run.parameters[name] for name in ("method", "seed", "lr"))
        points = self.ahead[method] - WRONG_RATE * (np.log(rate / self.right[method]) / np.log(SPACING)) ** 2
        row = {"run_id": run.id, "status": "complete", "label": method, "budget": "equal"}
        row |= {"metric": "accuracy", "greater_is_better": True}
        row |= {name: run.parameters[name] for name in ("stage", "method", "lr", "seed", "steps")}
        if run.parameters["stage"] == TUNE:
            right, key = self._right(points + self.early[method], -1, self.validation), None
            row |= {"validation_score": right.mean(), "validation_loss": 0.0}
        else:
            right, key = self._right(points, seed, self.test), (method, seed)
            self.known[key] = right
            row |= dict(zip(("score", "ci_low", "ci_high"), interval(right), strict=True))
        return {"row": dict.fromkeys(COLUMNS) | row, "key": key}

    def _right(self, points: float, seed: int, example: np.ndarray) -> np.ndarray:
        """Right or wrong of each example; a seed brings an arm its own luck."""
        normal = self.generator.standard_normal
        z = MIDDLE + points / SLOPE + example + self.shared[seed] + self.own * normal()
        return np.asarray(z + np.sqrt(REST) * normal(len(example)) > 0, dtype=float)

    def scores(self, key: tuple[str, int]) -> np.ndarray:
        return self.known[key]


def tuned(count: int) -> Rows:
    """The race beside the paired grid, tuning included: wrong names, the best lost, what is left, and steps."""
    found: Rows = []
    for kind, points in CASES:
        sums: dict[tuple[str, int], np.ndarray] = {}
        generator = np.random.default_rng(29)
        for _ in range(count):
            luck = Simulated(generator, truth(kind, points), 5, 735)
            for rule, seeds, follow, level in (("grid", 3, grid, LEVEL), ("race", 5, race, look_level(4))):
                records, steps = follow(luck, seeds)
                left, among = set(named(judged(luck, records, level))), tested(records)
                best, use = luck.truth, len(left) == 1
                bold, bolder = (use and len(equals) > 1 for equals in (best & among, best))
                row = np.array(
                    (use and not left & best, bold, bolder, not best & left, len(left), steps), dtype=float
                )
                sums[rule, seeds] = sums.get((rule, seeds), 0) + row / count
        for (rule, seeds), values in sums.items():
            row_of = {"part": "tuned", "arms": kind, "points": points, "rule": rule, "seeds": seeds}
            names = ("wrong use", "not alone", "not alone of all", "best lost", "set", "steps")
            found.append(row_of | dict(zip(names, map(float, values), strict=True)))
    return found


def power(count: int) -> Rows:
    """How often each rule names the best arm alone, how often a wrong one, and how many arms it leaves."""
    cases = [("equal", 0.0, 3), ("equal", 0.0, 5), ("ahead", 4.0, 3), ("ahead", 4.0, 5)]
    cases += [("ahead", 6.0, 2), ("ahead", 6.0, 3), ("ahead", 6.0, 5), ("ahead", 12.0, 3)]
    cases += [("two tie", 8.0, 3), ("spread", 3.0, 3), ("normal", 3.0, 3)]
    found: Rows = []
    for kind, points, seeds in cases:
        ahead = truth(kind, points)
        counts = {rule: np.zeros(3) for rule in RULES}
        for right in studies(np.random.default_rng(7), count, ahead, seeds, 735):
            for name, rule in RULES.items():
                best, left = rule(right)
                wrong = kind in ("equal", "two tie") or best != 0
                counts[name] += (not left and not wrong, not left and wrong, 1 + len(left))
        for name, sums in counts.items():
            right_use, wrong_use, size = sums / count
            row = {"part": "power", "arms": kind, "points": points, "seeds": seeds, "rule": name}
            found.append(row | {"use": right_use, "wrong use": wrong_use, "set": size})
    return found


def coverage(count: int) -> Rows:
    """How often the interval of a difference holds the true one: one pair, and all nine to the first arm at once."""
    found: Rows = []
    for seeds, examples, unequal in (
        (2, 735, 0.0),
        (3, 735, 0.0),
        (5, 735, 0.0),
        (3, 735, 1.0),
        (3, 3000, 0.0),
    ):
        one = every = 0
        ahead = np.zeros(ARMS)
        for right in studies(np.random.default_rng(11), count, ahead, seeds, examples, unequal):
            study = scores(right)
            pairs = [study.difference(0, a) for a in range(1, ARMS)]
            told = [found for found in pairs if found is not None]
            one += told[0].told == 0
            judged = holm(dict(enumerate(told)))
            every += all(found.told == 0 for found in judged.values())
        row = {"part": "coverage", "seeds": seeds, "examples": examples, "unequal": unequal}
        found.append(row | {"one pair": one / count, "all pairs": every / count})
    return found


def clustered(count: int) -> Rows:
    """The same where examples come in 98 groups that an arm does alike on."""
    generator, one = np.random.default_rng(13), {True: 0, False: 0}
    groups = np.sort(generator.integers(0, 98, 735))
    groups = np.unique(groups, return_inverse=True)[1]
    for right in studies(generator, count, np.zeros(2), 3, 735):
        shift = generator.standard_normal((2, groups.max() + 1)) < -1.3
        moved = np.where(shift[:, groups][:, None], 0.0, right)
        for known in one:
            difference = scores(moved, groups if known else None).difference(0, 1)
            one[known] += difference is not None and difference.told == 0
    return [
        {"part": "clusters", "groups known": known, "one pair": hit / count} for known, hit in one.items()
    ]


def run(options: argparse.Namespace) -> Rows:
    """Simulate, and print one table a part."""
    count = options.studies
    found = power(count) + races(count) + tuned(count // 4) + coverage(count) + clustered(count)
    for part in ("power", "race", "tuned", "coverage", "clusters"):
        table([row for row in found if row["part"] == part])
    return found
