"""The runs of a measured intrinsic dimension: which there are, how each is tuned, and where they are kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.files import atomic_write
from eckart.jobs.compare.contender import Contender
from eckart.jobs.compare.contenders import outward
from eckart.jobs.compare.names import HEAD_ONLY
from eckart.jobs.compare.plan import EXTENSIONS, FINAL, TUNE, TUNE_SHARE
from eckart.jobs.compare.study import Run
from eckart.jobs.earlier import read_earlier

if TYPE_CHECKING:
    from eckart.jobs.compare.runs import Runner

RUNS = "runs.json"


@dataclass(frozen=True)
class Arm:
    """A point of the curve: a contender, and its number of dimensions (0 the head alone, None full training)."""

    contender: Contender
    d: int | None

    @property
    def name(self) -> str:
        return f"d={self.d}" if self.d else self.contender.name


class Bank:
    """The runs of a measurement, done when first asked for and kept in a file."""

    def __init__(
        self, directory: Path, runner: Runner, steps: int, seeds: int, on_run: Callable[[int, int], None]
    ) -> None:
        self.path, self.runner, self.steps, self.seeds = directory / RUNS, runner, steps, seeds
        self.on_run, self.total, self.ended = on_run, 0, 0
        known = read_earlier(self.path, "measurement", dict) if self.path.is_file() else {}
        self.rows: dict[str, dict[str, Any]] = known

    def fill(self, arms: Sequence[Arm]) -> None:
        """Do what is missing: the learning rates of each arm, then its runs on the test split."""
        counted = (
            len(a.contender.learning_rates) + (self.seeds if a.contender.learning_rates else 1) for a in arms
        )
        self.total = sum(counted)
        for arm in arms:
            for rate in arm.contender.learning_rates:
                self._tune(arm, rate)
            for rate in self._known_beyond(arm):  # kept by an earlier call
                self.total += 1
                self._tune(arm, rate)
            while (beyond := self._beyond(arm)) is not None:
                self.total += 1
                self._tune(arm, beyond)
            best = self.rate(arm)
            fixed = not arm.contender.learning_rates
            for seed in range(1 if fixed else self.seeds):
                self._do(arm, FINAL, seed, best, 0 if fixed else self.steps)

    def _tune(self, arm: Arm, rate: float) -> None:
        self._do(arm, TUNE, 0, rate, max(1, round(TUNE_SHARE * self.steps)))

    def _trials(self, arm: Arm) -> list[dict[str, Any]]:
        """The tuning runs of an arm, by learning rate."""
        start = f"{TUNE}/{arm.name}/"
        return sorted(
            (row for key, row in self.rows.items() if key.startswith(start)), key=lambda row: row["lr"]
        )

    def _known_beyond(self, arm: Arm) -> list[float]:
        """The learning rates that were tried beyond the given ones."""
        return [row["lr"] for row in self._trials(arm) if row["lr"] not in arm.contender.learning_rates]

    def _beyond(self, arm: Arm) -> float | None:
        """The next learning rate where the best is the largest or smallest tried; three times at most."""
        if len(arm.contender.learning_rates) < 3 or len(self._known_beyond(arm)) >= EXTENSIONS:
            return None
        best = self.rate(arm)
        return outward([row["lr"] for row in self._trials(arm)], best) if best else None

    def rate(self, arm: Arm) -> float | None:
        """The learning rate of the best validation score; the smallest where none came through."""
        rows = self._trials(arm)
        sign = 1 if self.runner.task.greater_is_better else -1
        done = [row for row in rows if row["status"] == "complete" and row["validation_score"] is not None]
        if not rows:
            return None
        best = max(done, key=lambda row: (sign * row["validation_score"], -row["lr"]), default=rows[0])
        return float(best["lr"])

    def finals(self, arm: Arm) -> list[float]:
        """The scores on the test split by seed; NaN for a run that did not come through."""
        scores = [math.nan if row["score"] is None else float(row["score"]) for row in self.finals_of(arm)]
        return scores if arm.contender.learning_rates else scores * self.seeds

    def finals_of(self, arm: Arm) -> list[dict[str, Any]]:
        """The rows of an arm's runs on the test split; one where nothing is trained."""
        count = self.seeds if arm.contender.learning_rates else 1
        return [self.rows[self._key(arm, FINAL, seed, self.rate(arm))] for seed in range(count)]

    def parameters(self, arm: Arm) -> int:
        """Numbers that an arm trains, the head's included."""
        row = self.finals_of(arm)[0]
        return int((row["trainable_parameters"] or 0) + (row["head_parameters"] or 0))

    def _key(self, arm: Arm, stage: str, seed: int, rate: float | None) -> str:
        return f"{stage}/{arm.name}/lr={rate}/seed={seed}"

    def _do(self, arm: Arm, stage: str, seed: int, rate: float | None, steps: int) -> None:
        key = self._key(arm, stage, seed, rate)
        if key not in self.rows:
            head = next((row["lr"] for row in self._of_head()), None)
            numbers = {"lr": rate, "head_lr": rate if arm.d == 0 or head is None else head}
            given = {"stage": stage, "method": arm.contender.name, "seed": seed, "steps": steps, **numbers}
            row = self.runner.do(Run(key, given), arm.contender).row
            self.rows[key] = {
                name: value for name, value in row.items() if name not in ("versions", "machine")
            }
            with atomic_write(self.path) as path:
                path.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
        self.ended += 1
        self.on_run(self.ended, self.total)

    def _of_head(self) -> list[dict[str, Any]]:
        """The final run of the head alone, which has the learning rate of every head."""
        return [
            row for key, row in self.rows.items() if key.startswith(f"{FINAL}/{HEAD_ONLY}/") and row["lr"]
        ]
