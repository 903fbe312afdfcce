"""On real runs, resampled, the race leaves fewer methods than grids do, and names none that more seeds rule out.

Every run that a study of these methods could ask for is done once and kept: each at three learning rates, and further
out while the best is at an end, with two seeds of tuning; and on the test split with eight seeds at its best rate. A
study is then a draw: one seed of tuning and an order of the eight seeds. It is judged by the rule of version 0.1 on a
grid (*meet*), by the paired rule on that grid (*paired*), and raced by the product's own plan: as it is (*race*), in
three quarters of the steps of the grid of three seeds (*short*), and in all of them with up to eight seeds (*long*).
The truth is what the paired rule says of all eight seeds.

What is not drawn anew: a method's runs on the test split are those at its best rate over both seeds of tuning.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks._harness import table
from eckart.files import atomic_write
from eckart.jobs.compare.contender import Contender
from eckart.jobs.compare.contenders import contenders, outward
from eckart.jobs.compare.examples import SCORES, group_numbers
from eckart.jobs.compare.judgement import look_level
from eckart.jobs.compare.names import FULL, HEAD_ONLY
from eckart.jobs.compare.paired import LEVEL
from eckart.jobs.compare.plan import EXTENSIONS, FINAL, TUNE, TUNE_SHARE
from eckart.jobs.compare.presets import EMBEDDED
from eckart.jobs.compare.runs import COLUMNS, Runner
from eckart.jobs.compare.study import Run
from eckart.tasks.task import Task, load_task
from evidence._boards import plain
from evidence._record import RESULTS, Rows
from evidence._studies import STEPS, grid, judged, named, race, tested
from evidence.paired_comparison import meet

METHODS = ("lora", "bone", "mos", "flora-tucker", "svfit", "randlora")
RUNS = RESULTS.parent / "runs"
"""Where the runs are kept that studies are drawn from."""
TUNINGS, SEEDS = 2, 8
GRIDS = (3, 5)
"""Seeds of the grids."""
KEPT_COLUMNS = (
    *("stage", "method", "label", "budget", "lr", "seed", "steps", "status", "metric", "greater_is_better"),
    *("validation_score", "validation_loss", "score", "ci_low", "ci_high", "trainable_parameters"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Where SST-2 is, and how many studies are drawn."""
    parser.add_argument("--sst2", help="directory of train.parquet and validation.parquet (sentence, label)")
    parser.add_argument("--studies", type=int, default=100)


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
        self.groups = group_numbers(self.task.groups)
        self.runner = Runner(self.task, EMBEDDED.batch_size, "0.5%")
        self.contenders = contenders(self.task, METHODS, "0.5%", None, 3, None)
        self.by_name = {c.name: c for c in self.contenders}
        self.head = self.by_name[HEAD_ONLY]
        self._rates: dict[str, dict[float, float]] = {}
        self._truths: dict[frozenset[str], list[str]] = {}

    def fill(self) -> None:
        """Do the runs that are missing: those of tuning, then those on the test split."""
        for contender in (self.head, *(c for c in self.contenders if c is not self.head)):
            self.rates(contender)
        for seed in range(SEEDS):
            for contender in self.contenders:
                self.final(contender, seed)

    def rates(self, contender: Contender) -> dict[float, float]:
        """The mean validation score of each rate over the seeds of tuning: those given, then outwards from the best."""
        if contender.name in self._rates:
            return self._rates[contender.name]

        def mean(rate: float) -> float:
            found = [self.tuning(contender, rate, seed)["row"] for seed in range(TUNINGS)]
            return float(
                np.mean([r["validation_score"] if r["status"] == "complete" else 0.0 for r in found])
            )

        means = {rate: mean(rate) for rate in contender.learning_rates}
        for _ in range(EXTENSIONS):
            if (further := outward(sorted(means), max(means, key=means.__getitem__))) is None:
                break
            means[further] = mean(further)
        self._rates[contender.name] = means
        return means

    def best_rate(self, contender: Contender) -> float:
        """The rate whose validation score is best over the seeds of tuning."""
        means = self.rates(contender)
        return max(means, key=means.__getitem__)

    def tuning(self, contender: Contender, rate: float, seed: int) -> dict[str, Any]:
        """The run of tuning at one rate."""
        head_rate = rate if contender is self.head else self.best_rate(self.head)
        numbers = {"lr": rate, "head_lr": head_rate, "seed": seed, "steps": round(TUNE_SHARE * STEPS)}
        return self._done(contender, f"{TUNE}/{contender.name}/{rate:g}/{seed}", TUNE, numbers)

    def final(self, contender: Contender, seed: int) -> dict[str, Any]:
        """The run on the test split at the best rate."""
        rate = self.best_rate(contender)
        numbers = {"lr": rate, "head_lr": self.best_rate(self.head), "seed": seed, "steps": STEPS}
        return self._done(contender, f"{FINAL}/{contender.name}/{rate:g}/{seed}", FINAL, numbers)

    def _done(self, contender: Contender, name: str, stage: str, numbers: dict[str, Any]) -> dict[str, Any]:
        if name not in self.records:
            run = Run(name, {"stage": stage, "method": contender.name, **numbers})
            found = self.runner.do(run, contender)
            record: dict[str, Any] = {"row": {key: found.row.get(key) for key in KEPT_COLUMNS}}
            if found.scored is not None:
                record[SCORES] = np.packbits(np.asarray(found.scored.scores) > 0).tobytes().hex()
            self.records[name] = record
            with atomic_write(self.path) as path:
                path.write_text(json.dumps(self.records, indent=0), "utf-8")
        return self.records[name]

    def scores(self, method: str, seed: int) -> np.ndarray:
        """Right and wrong of each test example of one run."""
        record = self.final(self.by_name[method], seed)
        raw = np.frombuffer(bytes.fromhex(record[SCORES]), np.uint8)
        return np.unpackbits(raw)[: len(self.task.test)].astype(float)

    def truth(self, among: frozenset[str]) -> list[str]:
        """What the runs of all seeds leave of some methods, the best first."""
        if among not in self._truths:
            draw = Draw(self, 0, np.arange(SEEDS))
            everything, _ = grid(draw, SEEDS)
            records = {name: r for name, r in everything.items() if r["row"]["method"] in among}
            self._truths[among] = named(judged(draw, records, LEVEL))
        return self._truths[among]


class Draw:
    """One study's luck: a seed of tuning, and an order of the seeds on the test split."""

    def __init__(self, bank: Bank, tuning: int, order: np.ndarray) -> None:
        self.bank, self.tuning, self.order = bank, tuning, order
        self.contenders, self.groups = bank.contenders, bank.groups

    def answer(self, run: Run) -> Mapping[str, Any]:
        method, seed, rate = (run.parameters[name] for name in ("method", "seed", "lr"))
        contender = self.bank.by_name[method]
        if run.parameters["stage"] == TUNE:
            found, key = self.bank.tuning(contender, rate, self.tuning), None
        else:
            key = (method, int(self.order[seed]))
            found = self.bank.final(contender, key[1])
        row = dict.fromkeys(COLUMNS) | found["row"] | {"run_id": run.id, "seed": seed, "lr": rate}
        return {"row": row, "key": key}

    def scores(self, key: Any) -> np.ndarray:
        return self.bank.scores(*key)


def met(bank: Bank, order: np.ndarray) -> list[str]:
    """The same of the rule of version 0.1, which knows no pairs."""
    candidates = [c.name for c in bank.contenders if c.name != FULL]
    right = np.array([[bank.scores(name, int(seed)) for seed in order] for name in candidates])
    best, left = meet(right)
    return [candidates[best], *(candidates[arm] for arm in left)]


def draws(bank: Bank, count: int) -> Rows:
    """So many studies by each rule: how often one method is named, how often wrongly, what is left, and the steps."""
    everyone = frozenset(bank.by_name)
    truth = bank.truth(everyone)
    sums: dict[tuple[str, int], np.ndarray] = {}
    generator = np.random.default_rng(23)
    for _ in range(count):
        tuning, order = int(generator.integers(TUNINGS)), generator.permutation(SEEDS)
        draw = Draw(bank, tuning, order)
        found: dict[tuple[str, int], tuple[list[str], float, frozenset[str]]] = {}
        for seeds in GRIDS:
            records, cost = grid(draw, seeds)
            found["meet", seeds] = met(bank, order[:seeds]), cost, everyone
            found["paired", seeds] = named(judged(draw, records, LEVEL)), cost, everyone
        most = found["paired", GRIDS[0]][1]
        for rule, seeds, limit in (("race", 5, math.inf), ("short", 5, 0.75 * most), ("long", SEEDS, most)):
            records, cost = race(draw, seeds, limit)
            left = named(judged(draw, records, look_level(seeds - 1)))
            found[rule, seeds] = left, cost, tested(records)
        for key, (left, cost, among) in found.items():
            use = len(left) == 1
            wrong, bold = use and left[0] not in truth, use and left != bank.truth(among)
            numbers = (use, wrong, bold, use and left != truth, len(left), truth[0] not in left, cost)
            sums[key] = sums.get(key, 0) + np.array(numbers, dtype=float) / count
    head = {"part": "studies", "data": bank.name, "methods": len(bank.contenders), "truly best": len(truth)}
    names = ("use", "wrong use", "not alone", "not alone of all", "set", "best lost", "steps")
    return [
        head | {"rule": rule, "seeds": seeds} | dict(zip(names, map(float, values), strict=True))
        for (rule, seeds), values in sums.items()
    ]


def scores(bank: Bank) -> Rows:
    """What each method scores over all seeds, and by how much it is behind the best."""
    draw = Draw(bank, 0, np.arange(SEEDS))
    judgement = judged(draw, grid(draw, SEEDS)[0], LEVEL)
    columns = ("label", "score", "to_best", "to_best_low", "to_best_high", "ruled_out", "trained_parameters")
    return [
        {"part": "scores", "data": bank.name, "lr": bank.best_rate(bank.by_name[row["method"]])}
        | {key: plain(row[key]) for key in columns}
        for row in judgement.board.to_dict("records")
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
