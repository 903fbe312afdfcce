"""On real runs, resampled, the race leaves fewer methods than grids do, and names none that more seeds rule out.

Every run that a study of these methods could ask for is done once and kept: each at three learning rates with two seeds
of tuning, and on the test split with six seeds at its best rate. A study is then a draw: one seed of tuning and an
order of the six seeds. It is judged by the rule of version 0.1 on a grid (*meet*), by the paired rule on that grid
(*paired*), and raced by the product's own plan (*race*). The truth is what the paired rule says of all six seeds.

What is not drawn anew: a method's runs on the test split are those at its best rate over both seeds of tuning.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._harness import table
from eckart.files import atomic_write
from eckart.jobs.compare.contenders import Contender, contenders
from eckart.jobs.compare.examples import SCORES, Examples, group_numbers
from eckart.jobs.compare.judgement import Judgement, Terms, judge, look_level
from eckart.jobs.compare.names import FULL, HEAD_ONLY
from eckart.jobs.compare.paired import LEVEL
from eckart.jobs.compare.plan import FINAL, FLOOR, TUNE, TUNE_SHARE, Plan
from eckart.jobs.compare.presets import EMBEDDED
from eckart.jobs.compare.runs import COLUMNS, Runner
from eckart.jobs.compare.study import Run
from eckart.tasks.task import Task, load_task
from evidence._boards import plain
from evidence._record import RESULTS, Rows
from evidence.paired_comparison import meet

METHODS = ("lora", "bone", "mos", "flora-tucker", "svfit", "randlora")
RUNS = RESULTS.parent / "runs"
"""Where the runs are kept that studies are drawn from."""
TUNINGS, SEEDS = 2, 6
STEPS, TUNING_STEPS = 48, round(48 * TUNE_SHARE)
KEPT_COLUMNS = (
    *("stage", "method", "label", "budget", "lr", "seed", "steps", "status", "metric", "greater_is_better"),
    *("validation_score", "validation_loss", "score", "ci_low", "ci_high", "trainable_parameters"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Where SST-2 is, and how many studies are drawn."""
    parser.add_argument("--sst2", help="directory of train.parquet and validation.parquet (sentence, label)")
    parser.add_argument("--studies", type=int, default=200)


class Bank:
    """The runs of one data set, done when first asked for and kept in a file.

    Args:
        name: of the data set.
        data: where it is; the embedded one when None.
    """

    def __init__(self, name: str, data: str | None) -> None:
        self.name, self.path = name, RUNS / f"{name}.json"
        self.records: dict[str, Any] = json.loads(self.path.read_text("utf-8")) if self.path.exists() else {}
        limits = {"train": 4000, "validation": 500} if data else {}
        self.task: Task = load_task(None, data, max_length=EMBEDDED.max_length, limits=limits, seed=0)
        self.contenders = contenders(self.task, METHODS, "0.5%", None, 3, None)
        self._truths: dict[frozenset[str], list[str]] = {}

    def plan(self, seeds: int, judge: Callable[[Mapping[str, Any]], Judgement]) -> Plan:
        """The product's own, without learning rates beyond the three that the bank holds."""
        return Plan(self.contenders, STEPS, seeds, True, judge, extend=False)

    def fill(self) -> None:
        """Do the runs that are missing: those of tuning, then those on the test split."""
        runner = Runner(self.task, EMBEDDED.batch_size, "0.5%")
        head = next(c for c in self.contenders if c.name == HEAD_ONLY)
        for contender in (head, *(c for c in self.contenders if c is not head)):
            for rate in contender.trials:
                for seed in range(TUNINGS):
                    head_rate = rate if contender is head else self.best_rate(head)
                    numbers = {"lr": rate, "head_lr": head_rate, "seed": seed, "steps": TUNING_STEPS}
                    self._do(runner, contender, f"{TUNE}/{contender.name}/{rate:g}/{seed}", TUNE, numbers)
        for seed in range(SEEDS):
            for contender in self.contenders:
                numbers = {"lr": self.best_rate(contender), "head_lr": self.best_rate(head), "seed": seed}
                numbers |= {"steps": STEPS}
                self._do(runner, contender, f"{FINAL}/{contender.name}/{seed}", FINAL, numbers)

    def best_rate(self, contender: Contender) -> float:
        """The rate whose validation score is best over the seeds of tuning."""

        def score(rate: float) -> float:
            rows = [self.records[f"{TUNE}/{contender.name}/{rate:g}/{k}"]["row"] for k in range(TUNINGS)]
            return float(
                np.mean([row["validation_score"] if row["status"] == "complete" else 0 for row in rows])
            )

        return max(contender.trials, key=score)

    def _do(
        self, runner: Runner, contender: Contender, name: str, stage: str, numbers: dict[str, Any]
    ) -> None:
        if name in self.records:
            return
        found = runner.do(Run(name, {"stage": stage, "method": contender.name, **numbers}), contender)
        record: dict[str, Any] = {"row": {key: found.row.get(key) for key in KEPT_COLUMNS}}
        if found.scored is not None:
            record[SCORES] = np.packbits(np.asarray(found.scored.scores) > 0).tobytes().hex()
        self.records[name] = record
        with atomic_write(self.path) as path:
            path.write_text(json.dumps(self.records, indent=0), "utf-8")

    def scores(self, method: str, seed: int) -> np.ndarray:
        """Right and wrong of each test example of one run."""
        raw = np.frombuffer(bytes.fromhex(self.records[f"{FINAL}/{method}/{seed}"][SCORES]), np.uint8)
        return np.unpackbits(raw)[: len(self.task.test)].astype(float)

    def answer(self, run: Run, tuning: int, order: np.ndarray) -> dict[str, Any]:
        """What a study that drew this seed of tuning and this order of seeds would have recorded of a run."""
        method, seed = run.parameters["method"], run.parameters["seed"]
        if run.id == FLOOR:
            return {"row": dict.fromkeys(COLUMNS) | {"stage": FLOOR, "method": method, "status": "complete"}}
        if run.parameters["stage"] == TUNE:
            found = self.records[f"{TUNE}/{method}/{run.parameters['lr']:g}/{tuning}"]
        else:
            found = self.records[f"{FINAL}/{method}/{order[seed]}"]
        row = (
            dict.fromkeys(COLUMNS)
            | found["row"]
            | {"run_id": run.id, "seed": seed, "lr": run.parameters["lr"]}
        )
        return {"row": row, "run": (method, int(order[seed]) if seed is not None else 0)}

    def judge(self, records: Mapping[str, Any], level: float) -> Judgement:
        """What the product's rule says of such records."""
        results = pd.DataFrame([r["row"] for r in records.values()], columns=COLUMNS)
        finals = {name: r["run"] for name, r in records.items() if r["row"]["stage"] == FINAL}
        scores = {name: self.scores(*run) for name, run in finals.items()}
        return judge(results, Examples(scores, group_numbers(self.task.groups)), Terms(level))

    def truth(self, everything: Mapping[str, Any], among: frozenset[str]) -> list[str]:
        """What the runs of all seeds leave of some methods, the best first."""
        if among not in self._truths:
            records = {name: r for name, r in everything.items() if r["row"]["method"] in among}
            self._truths[among] = named(self.judge(records, LEVEL))
        return self._truths[among]


def grid(bank: Bank, tuning: int, order: np.ndarray) -> tuple[dict[str, Any], int]:
    """The records of a study that does every run, and its training steps."""
    runs = []
    for contender in bank.contenders:
        for rate in contender.trials:
            numbers = {"stage": TUNE, "method": contender.name, "seed": 0, "lr": rate, "steps": TUNING_STEPS}
            runs.append(Run(f"{TUNE}/{contender.name}/{rate:g}", numbers))
        for seed in range(len(order)):
            numbers = {
                "stage": FINAL,
                "method": contender.name,
                "seed": seed,
                "lr": bank.best_rate(contender),
            }
            runs.append(Run(f"{FINAL}/{contender.name}/{seed}", numbers | {"steps": STEPS}))
    records = {run.id: bank.answer(run, tuning, order) for run in runs}
    return records, sum(run.parameters["steps"] for run in runs)


def race(bank: Bank, tuning: int, order: np.ndarray, most: float) -> tuple[dict[str, Any], int]:
    """The same of a race over so many seeds, in which no run is begun that would take it over so many steps."""
    level = look_level(len(order) - 1)
    seen: dict[frozenset[str], Judgement] = {}

    def judged(found: Mapping[str, Any]) -> Judgement:
        if (key := frozenset(found)) not in seen:
            seen[key] = bank.judge(found, level)
        return seen[key]

    plan = bank.plan(len(order), judged)
    records: dict[str, Any] = {}
    steps = 0
    while fitting := [
        run for run in plan(records) if run.id == FLOOR or steps + run.parameters["steps"] <= most
    ]:
        run = fitting[0]
        records[run.id] = bank.answer(run, tuning, order)
        steps += 0 if run.id == FLOOR else run.parameters["steps"]
    return records, steps


def tested(records: Mapping[str, Any]) -> frozenset[str]:
    """The methods that a study ran on the test split."""
    return frozenset(r["row"]["method"] for r in records.values() if r["row"]["stage"] == FINAL)


def named(judgement: Judgement) -> list[str]:
    """The methods that a judgement leaves, the best first."""
    return [row.method for row in judgement.left]


def met(bank: Bank, order: np.ndarray) -> list[str]:
    """The same of the rule of version 0.1, which knows no pairs."""
    candidates = [c.name for c in bank.contenders if c.name != FULL]
    right = np.array([[bank.scores(name, int(seed)) for seed in order] for name in candidates])
    best, left = meet(right)
    return [candidates[best], *(candidates[arm] for arm in left)]


def draws(bank: Bank, count: int) -> Rows:
    """So many studies by each rule: how often one method is named, how often wrongly, what is left, and the steps."""
    everything, _ = grid(bank, 0, np.arange(SEEDS))
    truth = bank.truth(everything, tested(everything))
    sums: dict[tuple[str, int], np.ndarray] = {}
    generator = np.random.default_rng(23)
    for _ in range(count):
        tuning, order = int(generator.integers(TUNINGS)), generator.permutation(SEEDS)
        for seeds in (3, 5):
            records, steps = grid(bank, tuning, order[:seeds])
            found = {"meet": (met(bank, order[:seeds]), steps)}
            found["paired"] = (named(bank.judge(records, LEVEL)), steps)
            raced, spent = race(bank, tuning, order[:5], steps if seeds == 3 else math.inf)
            found["race"] = (named(bank.judge(raced, look_level(4))), spent)
            for rule, (left, cost) in found.items():
                use = len(left) == 1
                among = tested(raced if rule == "race" else everything)
                wrong = use and left[0] not in truth
                bold = use and left != bank.truth(everything, among)
                bolder = use and left != truth
                row = np.array([use, wrong, bold, bolder, len(left), truth[0] not in left, cost], dtype=float)
                sums[rule, seeds] = sums.get((rule, seeds), 0) + row / count
    head = {"part": "studies", "data": bank.name, "methods": len(bank.contenders), "truly best": len(truth)}
    names = ("use", "wrong use", "not alone", "not alone of all", "set", "best lost", "steps")
    return [
        head | {"rule": rule, "seeds": seeds} | dict(zip(names, map(float, values), strict=True))
        for (rule, seeds), values in sums.items()
    ]


def scores(bank: Bank) -> Rows:
    """What each method scores over all seeds, and by how much it is behind the best."""
    judgement = bank.judge(grid(bank, 0, np.arange(SEEDS))[0], LEVEL)
    columns = (
        "label",
        "score",
        "lr",
        "to_best",
        "to_best_low",
        "to_best_high",
        "ruled_out",
        "trained_parameters",
    )
    board = judgement.board[list(columns)].to_dict("records")
    return [
        {"part": "scores", "data": bank.name} | {key: plain(row[key]) for key in columns} for row in board
    ]


def run(options: argparse.Namespace) -> Rows:
    """Fill the banks, draw the studies, and print both."""
    found: Rows = []
    for name, data in {"docstrings": None, "sst2": options.sst2}.items():
        if name == "sst2" and data is None:
            continue
        bank = Bank(name, data)
        bank.fill()
        found += scores(bank) + draws(bank, options.studies)
    for part in ("scores", "studies"):
        table([row for row in found if row["part"] == part])
    return found
