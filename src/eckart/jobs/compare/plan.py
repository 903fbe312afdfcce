"""The order of work of a comparison: which runs there are, and which can be done given what is done.

First the frozen floor. Then the learning rates of the head-only baseline: its best is the learning rate of everyone's
head. Then the tuning runs, one of each method after another; a method's later ones wait for its earlier ones, so that
which are given up early does not depend on how many machines work. Then, seed by seed, the final run of each method
at its best learning rate. A final run needs only its own method's tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eckart.jobs.compare.contenders import HEAD_ONLY, Contender
from eckart.jobs.compare.study import Run

Row = Mapping[str, Any]
Records = Mapping[str, Mapping[str, Any]]

TUNE_SHARE = 0.5
"""Steps of a tuning run as a share of a final run's."""
RUNG = 1 / 3
"""Share of a tuning run after which a hopeless learning rate is given up."""
FLOOR_STEPS = 6
TUNE, FINAL, FLOOR = "tune", "final", "floor"


@dataclass(frozen=True)
class Plan:
    """All runs of a comparison.

    Args:
        contenders: who takes part, the head-only baseline among them.
        steps: optimiser steps of a final run.
        seeds: final runs of each method, with seeds 0, 1, ….
        greater_is_better: the direction of the score.
    """

    contenders: Sequence[Contender]
    steps: int
    seeds: int
    greater_is_better: bool

    @property
    def tune_steps(self) -> int:
        return max(1, round(TUNE_SHARE * self.steps))

    @property
    def rung(self) -> int:
        return max(1, round(RUNG * self.tune_steps))

    def __call__(self, records: Records) -> list[Run]:
        """The runs that can be done now and are not, in the order in which they should be; empty at the end."""
        return [run for run in self._ready(records) if run.id not in records]

    def of(self, contender: Contender) -> list[str]:
        """The names of all runs of a method."""
        tuning = [self._tune_id(contender, rate) for rate in contender.trials if len(contender.trials) > 1]
        seeds = self.seeds if contender.learning_rates else 1
        return tuning + [self._final_id(contender, seed) for seed in range(seeds)]

    def trials(self, contender: Contender, records: Records) -> list[Row]:
        """The rows of a method's finished tuning runs, in the order in which they were done."""
        found = (records.get(self._tune_id(contender, rate)) for rate in contender.trials)
        return [record["row"] for record in found if record is not None]

    def finals(self, contender: Contender, records: Records) -> list[Row]:
        """The rows of a method's finished final runs."""
        found = (records.get(self._final_id(contender, seed)) for seed in range(self.seeds))
        return [record["row"] for record in found if record is not None]

    def rank(self, row: Row) -> tuple[float, float, float]:
        """Sorts tuning rows, best first: validation score, then validation loss, then the smaller learning rate."""
        score = row["validation_score"]
        return (-score if self.greater_is_better else score, row["validation_loss"], row["lr"])

    def tuned(self, contender: Contender, records: Records) -> bool:
        """Whether a method's learning rate is settled."""
        rates = contender.learning_rates
        return len(rates) < 2 or len(self.trials(contender, records)) == len(rates)

    def best_rate(self, contender: Contender, records: Records) -> float | None:
        """A tuned method's learning rate; None when no run of its tuning came through."""
        if len(contender.learning_rates) == 1:
            return contender.learning_rates[0]
        complete = [row for row in self.trials(contender, records) if row["status"] == "complete"]
        return float(min(complete, key=self.rank)["lr"]) if complete else None

    def _tune_id(self, contender: Contender, rate: float) -> str:
        return f"{TUNE}/{contender.name}/lr={rate:g}"

    def _final_id(self, contender: Contender, seed: int) -> str:
        return f"{FINAL}/{contender.name}/seed={seed}"

    def _ready(self, records: Records) -> list[Run]:
        floor = Run(FLOOR, {"stage": FLOOR, "method": "frozen-floor", "seed": 0, "steps": FLOOR_STEPS})
        head = next(c for c in self.contenders if c.name == HEAD_ONLY)
        if not self.tuned(head, records):
            return [floor, *self._next_trials(records, [head], None)]
        # When not even the head alone trains at any rate, the smallest is what is left to try.
        head_rate = self.best_rate(head, records) or min(head.learning_rates, default=0.0)
        return [
            floor,
            *self._next_trials(records, self.contenders, head_rate),
            *(
                run
                for seed in range(self.seeds)
                for contender in self.contenders
                if (run := self._final(contender, seed, head_rate, records)) is not None
            ),
        ]

    def _next_trials(
        self, records: Records, contenders: Sequence[Contender], head_rate: float | None
    ) -> list[Run]:
        """The next tuning run of each method, those with the fewest done first."""
        runs = []
        for contender in contenders:
            done = len(self.trials(contender, records))
            if not self.tuned(contender, records):
                rate = contender.trials[done]
                numbers = {"lr": rate, "head_lr": head_rate or rate, "seed": 0, "steps": self.tune_steps}
                parameters = {"stage": TUNE, "method": contender.name, **numbers}
                runs.append((done, Run(self._tune_id(contender, rate), parameters)))
        return [run for _, run in sorted(runs, key=lambda item: item[0])]

    def _final(self, contender: Contender, seed: int, head_rate: float, records: Records) -> Run | None:
        if not contender.learning_rates:
            numbers: dict[str, Any] = {"lr": None, "head_lr": None, "seed": 0, "steps": 0}
        else:
            rate = self.best_rate(contender, records) if self.tuned(contender, records) else None
            if rate is None:
                return None
            own = rate if contender.name == HEAD_ONLY else head_rate
            numbers = {"lr": rate, "head_lr": own, "seed": seed, "steps": self.steps}
        if seed != numbers["seed"]:
            return None
        return Run(self._final_id(contender, seed), {"stage": FINAL, "method": contender.name, **numbers})
