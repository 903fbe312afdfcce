"""The race of a comparison: which runs can be done given what is done. It follows from the records alone.

First the frozen floor. Then the learning rates of the head-only baseline: its best is the learning rate of everyone's
head. Then, by successive halving,

1. every method at its learning rates for a short run; where the best is the largest or smallest tried, one more;
2. the better third of the methods at their two best rates for a longer run;
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

from eckart.jobs.compare.contenders import FULL, HEAD_ONLY, LORA, SPACING, Contender
from eckart.jobs.compare.study import Run

if TYPE_CHECKING:
    from eckart.jobs.compare.judgement import Judgement

Row = Mapping[str, Any]
Records = Mapping[str, Mapping[str, Any]]

SCREEN_SHARE, TUNE_SHARE = 1 / 6, 1 / 2
"""Steps of a run of the first and of the second round as shares of a final run's."""
KEPT = 1 / 3
"""Share of the methods that goes on to the next round of tuning."""
FEW = 3
EXTENSIONS = 3
"""Learning rates tried beyond the given ones, at most."""
FLOOR_STEPS = 6
TUNE, FINAL, FLOOR = "tune", "final", "floor"
ALWAYS = (HEAD_ONLY, FULL, LORA)


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
    """

    contenders: Sequence[Contender]
    steps: int
    seeds: int
    greater_is_better: bool
    judge: Callable[[Records], Judgement]
    extend: bool = True

    @property
    def screen_steps(self) -> int:
        return max(1, round(SCREEN_SHARE * self.steps))

    @property
    def tune_steps(self) -> int:
        return max(1, round(TUNE_SHARE * self.steps))

    def __call__(self, records: Records) -> list[Run]:
        """The runs that can be done now and are not, in the order in which they should be; empty at the end."""
        return [run for run in self._ready(records) if run.id not in records]

    def trials(self, contender: Contender, records: Records, steps: int | None = None) -> list[Row]:
        """The rows of a method's finished tuning runs, or of those of so many steps, by learning rate."""
        found = [
            record["row"]
            for name, record in records.items()
            if name.startswith(f"{TUNE}/{contender.name}/")
            and (steps is None or name.endswith(f"/steps={steps}"))
        ]
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
        """A method's learning rate by its longest tuning runs; None when no run of its tuning came through."""
        if len(contender.learning_rates) == 1:
            return contender.learning_rates[0]
        for steps in (self.tune_steps, self.screen_steps):
            if best := self._best(contender, records, steps):
                return float(best["lr"])
        return None

    def dropped(self, records: Records) -> dict[str, str]:
        """The methods that the race has dropped by now, with when and why."""
        if not self._through(self.contenders, records, self._screening):
            return {}
        told: dict[str, str] = {}
        second = self._best_of(self.contenders, records, self.screen_steps, told)
        if not self._through(second, records, self._tuning):
            return told
        alive = self._best_of(second, records, self.tune_steps, told)
        for seed in range(self.seeds):
            if not self._round_done(alive, seed, records):
                break
            alive = self._alive(alive, seed, records, told)
        return told

    def _ready(self, records: Records) -> list[Run]:
        floor = Run(FLOOR, {"stage": FLOOR, "method": "frozen-floor", "seed": 0, "steps": FLOOR_STEPS})
        head = [next(c for c in self.contenders if c.name == HEAD_ONLY)]
        for rounds in (self._screening, self._tuning):
            if not self._through(head, records, rounds):
                return [floor, *self._trials_of(head, records, rounds, None)]
        # When not even the head alone trains at any rate, the smallest is what is left to try.
        head_rate = self.best_rate(head[0], records) or min(head[0].learning_rates, default=0.0)
        everyone = self.contenders
        if not self._through(everyone, records, self._screening):
            return [floor, *self._trials_of(everyone, records, self._screening, head_rate)]
        second = self._best_of(everyone, records, self.screen_steps)
        if not self._through(second, records, self._tuning):
            return [floor, *self._trials_of(second, records, self._tuning, head_rate)]
        alive = self._best_of(second, records, self.tune_steps)
        finals: list[Run] = []
        for seed in range(self.seeds):
            finals += [run for c in alive if (run := self._final(c, seed, head_rate, records)) is not None]
            if not self._round_done(alive, seed, records):
                break
            alive = self._alive(alive, seed, records)
        return [floor, *finals]

    def _screening(self, contender: Contender, records: Records) -> list[float]:
        """The learning rates of the first round that can be done now or are done."""
        rates = contender.trials if len(contender.learning_rates) > 1 else []
        return self._extended(contender, rates, self.screen_steps, records)

    def _tuning(self, contender: Contender, records: Records) -> list[float]:
        """The same of the second round: the two best of the first."""
        complete = [
            row for row in self.trials(contender, records, self.screen_steps) if row["status"] == "complete"
        ]
        rates = [float(row["lr"]) for row in sorted(complete, key=self.rank)[:2]]
        return self._extended(contender, rates, self.tune_steps, records)

    def _extended(
        self, contender: Contender, rates: Sequence[float], steps: int, records: Records
    ) -> list[float]:
        """The rates, and with them done those beyond the end at which the best was."""
        wanted = list(rates)
        given = set(contender.learning_rates)
        while wanted and all(self._tune_id(contender, rate, steps) in records for rate in wanted):
            tried = {float(row["lr"]) for row in self.trials(contender, records)}
            best = self._best(contender, records, steps)
            beyond = len((tried | set(wanted)) - given)
            if not self.extend or best is None or len(given) < 3 or beyond >= EXTENSIONS:
                break
            outward = {min(tried): 1 / SPACING, max(tried): SPACING}.get(float(best["lr"]))
            if outward is None:
                break
            following = float(f"{float(best['lr']) * outward:.2g}")
            if following in wanted:
                break
            wanted.append(following)
        # An extension that is done leaves the best inside, and then belongs to the round too.
        done = [float(row["lr"]) for row in self.trials(contender, records, steps)]
        return wanted + [rate for rate in done if rate not in wanted]

    def _best(self, contender: Contender, records: Records, steps: int) -> Row | None:
        complete = [row for row in self.trials(contender, records, steps) if row["status"] == "complete"]
        return min(complete, key=self.rank) if complete else None

    def _through(
        self,
        contenders: Sequence[Contender],
        records: Records,
        rounds: Callable[[Contender, Records], list[float]],
    ) -> bool:
        return not self._trials_of(contenders, records, rounds, None, only_missing=True)

    def _trials_of(
        self,
        contenders: Sequence[Contender],
        records: Records,
        rounds: Callable[[Contender, Records], list[float]],
        head_rate: float | None,
        only_missing: bool = False,
    ) -> list[Run]:
        """The tuning runs of a round, the first rate of every method before the second of any."""
        steps = self.screen_steps if rounds == self._screening else self.tune_steps
        runs = []
        for contender in contenders:
            for place, rate in enumerate(rounds(contender, records)):
                name = self._tune_id(contender, rate, steps)
                if not (only_missing and name in records):
                    numbers = {"lr": rate, "head_lr": head_rate or rate, "seed": 0, "steps": steps}
                    runs.append((place, Run(name, {"stage": TUNE, "method": contender.name, **numbers})))
        return [run for _, run in sorted(runs, key=lambda item: item[0])]

    def _best_of(
        self,
        contenders: Sequence[Contender],
        records: Records,
        steps: int,
        told: dict[str, str] | None = None,
    ) -> list[Contender]:
        """The better ones by the best validation score at so many steps, with the baselines, the best first."""
        baselines = [c for c in contenders if c.name in (HEAD_ONLY, FULL)]
        others = [c for c in contenders if c not in baselines]
        best = {c.name: self._best(c, records, steps) for c in others}
        untuned = [c for c in others if len(c.learning_rates) < 2]
        tuned = [(self.rank(row), c) for c in others if (row := best[c.name]) is not None]
        order = untuned + [c for _, c in sorted(tuned, key=lambda item: item[0])]
        keep = max(FEW, math.ceil(KEPT * len(order))) if tuned else len(order)
        for place, contender in enumerate(order):
            if place >= keep and contender.name not in ALWAYS and told is not None:
                told[contender.name] = (
                    f"after tuning runs of {steps} steps: place {place + 1} of {len(order)} on the validation split, "
                    f"of which {keep} went on"
                )
        kept = [c for place, c in enumerate(order) if place < keep or c.name in ALWAYS]
        return [*baselines, *kept]

    def _round_done(self, alive: Sequence[Contender], seed: int, records: Records) -> bool:
        runs = (self._final(c, seed, 0.0, records) for c in alive)
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

    def _tune_id(self, contender: Contender, rate: float, steps: int) -> str:
        return f"{TUNE}/{contender.name}/lr={rate:g}/steps={steps}"

    def _final_id(self, contender: Contender, seed: int) -> str:
        return f"{FINAL}/{contender.name}/seed={seed}"

    def _final(self, contender: Contender, seed: int, head_rate: float, records: Records) -> Run | None:
        if not contender.learning_rates:
            numbers: dict[str, Any] = {"lr": None, "head_lr": None, "seed": 0, "steps": 0}
        else:
            rate = self.best_rate(contender, records)
            if rate is None:
                return None
            own = rate if contender.name == HEAD_ONLY else head_rate
            numbers = {"lr": rate, "head_lr": own, "seed": seed, "steps": self.steps}
        if seed != numbers["seed"]:
            return None
        return Run(self._final_id(contender, seed), {"stage": FINAL, "method": contender.name, **numbers})
