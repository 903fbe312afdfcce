"""Studies made of runs that are known beforehand: what a grid and the product's own race do with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from eckart.jobs.compare.contender import Contender
from eckart.jobs.compare.examples import Examples
from eckart.jobs.compare.judgement import Judgement, Terms, judge, look_level
from eckart.jobs.compare.plan import FINAL, FLOOR, Plan, Rates, Records
from eckart.jobs.compare.runs import COLUMNS
from eckart.jobs.compare.study import Run

STEPS = 48
"""Training steps of a run on the test split."""


class Luck(Protocol):
    """The runs that one study would have seen."""

    contenders: Sequence[Contender]
    groups: np.ndarray | None

    def answer(self, run: Run) -> Mapping[str, Any]:
        """What is recorded of a run: its ``row``, and by which ``key`` its scores are known."""

    def scores(self, key: Any) -> np.ndarray:
        """The score of each test example of a run."""


class Grid(Plan):
    """Every method at all its learning rates, then at its best of them with every seed: nobody is dropped."""

    def _better(
        self, contenders: Sequence[Contender], records: Records, rates: Rates, when: str, told: dict[str, str]
    ) -> list[Contender]:
        return list(contenders)

    def _alive(
        self,
        alive: Sequence[Contender],
        seed: int,
        records: Records,
        told: dict[str, str] | None = None,
    ) -> list[Contender]:
        return list(alive)


def judged(luck: Luck, records: Mapping[str, Any], level: float) -> Judgement:
    """What the product's rule says of such records."""
    results = pd.DataFrame([r["row"] for r in records.values()], columns=COLUMNS)
    finals = {name: r["key"] for name, r in records.items() if r["row"]["stage"] == FINAL}
    scores = {name: luck.scores(key) for name, key in finals.items()}
    return judge(results, Examples(scores, luck.groups), Terms(level))


def grid(luck: Luck, seeds: int) -> tuple[dict[str, Any], int]:
    """The records of a study that does every run, and its training steps."""

    def nobody(records: Records) -> Judgement:
        raise AssertionError("a grid asks nobody")

    return _follow(luck, Grid(luck.contenders, STEPS, seeds, True, nobody), math.inf)


def race(luck: Luck, seeds: int, most: float = math.inf) -> tuple[dict[str, Any], int]:
    """The same of a race over so many seeds, in which no run is begun that would take it over so many steps."""
    level = look_level(seeds - 1)
    seen: dict[frozenset[str], Judgement] = {}

    def known(found: Records) -> Judgement:
        if (key := frozenset(found)) not in seen:
            seen[key] = judged(luck, found, level)
        return seen[key]

    return _follow(luck, Plan(luck.contenders, STEPS, seeds, True, known), most)


def _follow(luck: Luck, plan: Plan, most: float) -> tuple[dict[str, Any], int]:
    records: dict[str, Any] = {}
    steps = 0
    while runs := [
        run for run in plan(records) if run.id == FLOOR or steps + run.parameters["steps"] <= most
    ]:
        run = runs[0]
        if run.id == FLOOR:
            row = {"run_id": run.id, "stage": FLOOR, "method": run.parameters["method"], "status": "complete"}
            records[run.id] = {"row": dict.fromkeys(COLUMNS) | row}
        else:
            records[run.id] = luck.answer(run)
            steps += run.parameters["steps"]
    return records, steps


def tested(records: Mapping[str, Any]) -> frozenset[str]:
    """The methods that a study ran on the test split."""
    return frozenset(r["row"]["method"] for r in records.values() if r["row"]["stage"] == FINAL)


def named(judgement: Judgement) -> list[str]:
    """The methods that a judgement leaves, the best first."""
    return [row.method for row in judgement.left]
