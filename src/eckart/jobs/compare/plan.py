"""The race of a comparison: which runs can be done given what is done. It follows from the records alone.

First the frozen floor. Then the learning rates of the head-only baseline: its best is the learning rate of everyone's
head. Then, by successive halving,

1. every method at the middle one of its learning rates; who is too slow to be tested in the time leaves;
2. the better third of the methods at its other rates; where the best is the largest or smallest tried, one more;
3. the better third of those on the test split, seed by seed. From two seeds on a method that is told apart from the
   best is dropped, and the race ends when the answer stands or there are no more seeds.

The baselines are in every round, and at least `FEW` methods go on. Rounds wait for one another, so that what is dropped
does not depend on how many machines work; the runs of a round can be done in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eckart.jobs.compare.contender import Contender
from eckart.jobs.compare.contenders import outward
from eckart.jobs.compare.names import DENSE, FULL, HEAD_ONLY, LORA
from eckart.jobs.compare.study import Run

if TYPE_CHECKING:
    from eckart.jobs.compare.judgement import Judgement

Row = Mapping[str, Any]
Records = Mapping[str, Mapping[str, Any]]
Rates = Callable[["Contender", Records], list[float]]

TUNE_SHARE = 1 / 2
"""Steps of a tuning run as a share of a final run's."""
KEPT = 1 / 3
"""Share of the methods that goes on to the next round of tuning."""
FEW = 3
MOST_TIME = 1 / 30
"""Share of the time that a final run of a method may take, by the pace of its tuning: a few seeds of a few methods must
fit, each with the scoring of the test split, a fifth to a half as long again on the embedded data."""
EXTENSIONS = 3
"""Learning rates tried beyond the given ones, at most."""
FLOOR_STEPS = 6
TUNE, FINAL, FLOOR = "tune", "final", "floor"
ALWAYS = (HEAD_ONLY, FULL, LORA, DENSE)


@dataclass(frozen=True)
class Plan:
    """All runs of a comparison.

    Args:
        contenders: who takes part, the head-only baseline among them.
        steps: optimiser steps of a final run.
        seeds: final runs of a method at most, with seeds 0, 1, ….
        greater_is_better: the direction of the score.
        judge: what the records say by now.
        extend: whether learning rates beyond the given ones are tried where the best is at an end.
        time: seconds that the race may take; None when it takes what it needs.
    """

    contenders: Sequence[Contender]
    steps: int
    seeds: int
    greater_is_better: bool
    judge: Callable[[Records], Judgement]
    extend: bool = True
    time: float | None = None

    @property
    def tune_steps(self) -> int:
        return max(1, round(TUNE_SHARE * self.steps))

    def __call__(self, records: Records) -> list[Run]:
        """The runs that can be done now and are not, in the order in which they should be; empty at the end."""
        return [run for run in self._ready(records) if run.id not in records]

    def trials(self, contender: Contender, records: Records) -> list[Row]:
        """The rows of a method's finished tuning runs, by learning rate."""
        start, end = f"{TUNE}/{contender.name}/", f"/steps={self.tune_steps}"
        found = [r["row"] for name, r in records.items() if name.startswith(start) and name.endswith(end)]
        return sorted(found, key=lambda row: float(row["lr"]))

    def finals(self, contender: Contender, records: Records) -> list[Row]:
        """The rows of a method's finished final runs."""
        found = (records.get(self._final_id(contender, seed)) for seed in range(self.seeds))
        return [record["row"] for record in found if record is not None]

    def rank(self, row: Row) -> tuple[float, float, float]:
        """Sorts tuning rows, best first: validation score, then validation loss, then the smaller learning rate."""
        score = row["validation_score"]
        return (-score if self.greater_is_better else score, row["validation_loss"], row["lr"])

    def best_rate(self, contender: Contender, records: Records) -> float | None:
        """A method's learning rate by its tuning runs; None when none of them came through."""
        if len(contender.learning_rates) == 1:
            return contender.learning_rates[0]
        best = self._best(self.trials(contender, records))
        return float(best["lr"]) if best else None

    def dropped(self, records: Records) -> dict[str, str]:
        """The methods that the race has dropped by now, with when and why."""
        told: dict[str, str] = {}
        missing, alive = self._tuning(records, told)
        for seed in range(0 if missing else self.seeds):
            if not self._round_done(alive, seed, records):
                break
            alive = self._alive(alive, seed, records, told)
        return told

    def _ready(self, records: Records) -> list[Run]:
        floor = Run(FLOOR, {"stage": FLOOR, "method": "frozen-floor", "seed": 0, "steps": FLOOR_STEPS})
        runs, alive = self._tuning(records)
        for seed in range(0 if runs else self.seeds):
            runs += [run for c in alive if (run := self._final(c, seed, records)) is not None]
            if not self._round_done(alive, seed, records):
                break
            alive = self._alive(alive, seed, records)
        return [floor, *runs]

    def _tuning(
        self, records: Records, told: dict[str, str] | None = None
    ) -> tuple[list[Run], list[Contender]]:
        """The runs that the round of tuning under way still wants, or none and the methods to test."""
        head = [c for c in self.contenders if c.name == HEAD_ONLY]
        if missing := self._missing(head, records, self._all_rates):
            return missing, []
        alive = list(self.contenders)
        for rates, when in ((self._middle, "at its middle learning rate"), (self._all_rates, "at its best")):
            if missing := self._missing(alive, records, rates):
                return missing, []
            told = {} if told is None else told
            alive = self._better(self._affordable(alive, records, told), records, rates, when, told)
        return [], alive

    def _affordable(
        self, contenders: Sequence[Contender], records: Records, told: dict[str, str]
    ) -> list[Contender]:
        """Those whose final run takes a small part of the time, by the pace of their first; baselines always."""
        kept = []
        for contender in contenders:
            first = records.get(self._tune_id(contender, contender.trials[0])) if contender.trials else None
            seconds = (
                0.0 if first is None else (first["row"]["seconds"] or 0.0) / self.tune_steps * self.steps
            )
            if contender.name in ALWAYS or self.time is None or seconds <= MOST_TIME * self.time:
                kept.append(contender)
            else:
                told[contender.name] = (
                    f"after its first run: one of {self.steps} steps would take some {seconds:.0f} s of the "
                    f"{self.time:.0f} s there are: give it more --time"
                )
        return kept

    def _middle(self, contender: Contender, records: Records) -> list[float]:
        """The learning rate of the first round; none where there is nothing to choose."""
        return contender.trials[:1] if len(contender.learning_rates) > 1 else []

    def _all_rates(self, contender: Contender, records: Records) -> list[float]:
        """Those of the second round: the given, those done beyond them, and one more while the best is at an end."""
        if len(contender.learning_rates) < 2:
            return []
        trials = self.trials(contender, records)
        done = [float(row["lr"]) for row in trials]
        beyond = [rate for rate in done if rate not in contender.learning_rates]
        rates = [*contender.trials, *beyond]
        if all(self._tune_id(contender, rate) in records for rate in rates):
            best = self._best(trials)
            further = outward(done, float(best["lr"])) if best else None
            enough = len(contender.learning_rates) < 3 or len(beyond) >= EXTENSIONS
            if self.extend and further and not enough:
                rates.append(further)
        return rates

    def _best(self, rows: Sequence[Row]) -> Row | None:
        """The best of those that came through."""
        return min((row for row in rows if row["status"] == "complete"), key=self.rank, default=None)

    def _missing(self, contenders: Sequence[Contender], records: Records, rates: Rates) -> list[Run]:
        """The tuning runs of a round that are not done, the first rate of every method before the second of any."""
        runs, common = [], self._head_rate(records)
        for contender in contenders:
            for place, rate in enumerate(rates(contender, records)):
                name = self._tune_id(contender, rate)
                if name not in records:
                    head_rate = rate if contender.name == HEAD_ONLY else common or rate
                    numbers = {"lr": rate, "head_lr": head_rate, "seed": 0, "steps": self.tune_steps}
                    runs.append((place, Run(name, {"stage": TUNE, "method": contender.name, **numbers})))
        return [run for _, run in sorted(runs, key=lambda item: item[0])]

    def _better(
        self,
        contenders: Sequence[Contender],
        records: Records,
        rates: Rates,
        when: str,
        told: dict[str, str],
    ) -> list[Contender]:
        """The better ones by the validation score at some learning rates, with the baselines, the best first."""
        baselines = [c for c in contenders if c.name in (HEAD_ONLY, FULL, DENSE)]
        tuned = [c for c in contenders if c not in baselines and len(c.learning_rates) > 1]
        untuned = [c for c in contenders if c not in baselines and c not in tuned]
        best = {}
        for contender in tuned:
            among = rates(contender, records)
            best[contender.name] = self._best(
                [row for row in self.trials(contender, records) if row["lr"] in among]
            )
        last = (math.inf, math.inf, math.inf)
        ranks = {name: self.rank(row) if row else last for name, row in best.items()}
        order = [*untuned, *sorted(tuned, key=lambda c: ranks[c.name])]
        keep = max(FEW, math.ceil(KEPT * len(order))) if tuned else len(order)
        for place, contender in enumerate(order[keep:], keep + 1):
            if contender.name not in ALWAYS:
                what = f"place {place} of {len(order)} on the validation split, of which {keep} went on"
                what = what if best[contender.name] else "no run came through"
                told[contender.name] = f"{when}, in runs of {self.tune_steps} steps: {what}"
        return [*baselines, *(c for i, c in enumerate(order) if i < keep or c.name in ALWAYS)]

    def _round_done(self, alive: Sequence[Contender], seed: int, records: Records) -> bool:
        runs = (self._final(c, seed, records) for c in alive)
        return bool(alive) and all(run is None or run.id in records for run in runs)

    def _alive(
        self, alive: Sequence[Contender], seed: int, records: Records, told: dict[str, str] | None = None
    ) -> list[Contender]:
        """Who goes on after a round: nobody when the answer stands, else those not told apart from the best."""
        if seed == 0:
            return list(alive)
        finals = [record for record in records.values() if record["row"]["stage"] != FINAL]
        past = {r["row"]["run_id"]: r for r in finals}
        past |= {
            name: record
            for name, record in records.items()
            if record["row"]["stage"] == FINAL and int(record["row"]["seed"] or 0) <= seed
        }
        judgement = self.judge(past)
        reasons = judgement.reasons()
        for contender in alive:
            if contender.name in reasons and told is not None:
                told[contender.name] = f"after {seed + 1} seeds: {reasons[contender.name]}"
        if judgement.settled:
            return []
        return [c for c in alive if c.name not in reasons]

    def _head_rate(self, records: Records) -> float:
        """The learning rate of everyone's head; when not even the head alone trains at any, the smallest tried; 0 where
        the head alone does not take part, and each method's is its own."""
        head = next((c for c in self.contenders if c.name == HEAD_ONLY), None)
        if head is None:
            return 0.0
        return self.best_rate(head, records) or min(head.learning_rates, default=0.0)

    def _tune_id(self, contender: Contender, rate: float) -> str:
        return f"{TUNE}/{contender.name}/lr={rate:g}/steps={self.tune_steps}"

    def _final_id(self, contender: Contender, seed: int) -> str:
        return f"{FINAL}/{contender.name}/seed={seed}"

    def _final(self, contender: Contender, seed: int, records: Records) -> Run | None:
        if not contender.learning_rates:
            numbers: dict[str, Any] = {"lr": None, "head_lr": None, "seed": 0, "steps": 0}
        else:
            rate = self.best_rate(contender, records)
            if rate is None:
                return None
            own = rate if contender.name == HEAD_ONLY else self._head_rate(records) or rate
            numbers = {"lr": rate, "head_lr": own, "seed": seed, "steps": self.steps}
        if seed != numbers["seed"]:
            return None
        return Run(self._final_id(contender, seed), {"stage": FINAL, "method": contender.name, **numbers})
