"""A few steps of training give back much of what compression takes from a language model, and change who is ahead.

A fifth of the linear layers' parameters is removed by three methods, all from the same statistics; then
what was compressed, and the norms, train on text of the same kind, as `eckart compress --heal` trains them. The dense
model's layers train as long. The learning rate of each is the best of a grid on the validation text, no neighbour
better, with seed 0; the test text is scored with three further seeds. What is there already is kept.
"""

from __future__ import annotations

import argparse
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM

import eckart.compression as compression
from eckart.jobs.compare.names import DENSE
from eckart.jobs.compare.paired import Scores
from eckart.tasks.scoring import score_examples
from eckart.tasks.smaller import HEAL_LR, calibration_batches, train_factors
from eckart.tasks.task import Task, load_task
from eckart.tasks.trainer import Recipe, train_run
from evidence._record import Rows, keep, kept

SLUG = "healing"
ARMS = ("modegpt", "whitened-svd", DENSE, "lord")
"""The other closed-form methods leave nothing to heal at this size: docs/evidence/compression.md."""
RATIO, FACTOR, MOST = 0.2, 10**0.5, 7
"""Share removed; ratio of neighbouring learning rates; how many are tried at most."""
SEEDS = (1, 2, 3)
LENGTH, BATCH = 128, 1


def arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the text, where what is compressed is kept, and how long is trained."""
    parser.add_argument("--model", default="smollm2", help="directory of a language model, or smollm2")
    parser.add_argument("--data", required=True, help="directory of train and test text")
    parser.add_argument("--output", type=Path, default=Path("eckart-healing"))
    parser.add_argument(
        "--statistics", type=Path, help="those that benchmarks/compression_ladder.py has kept"
    )
    parser.add_argument("--arms", default=",".join(ARMS), help="names with commas")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--test", type=int, default=32, help=f"blocks of {LENGTH} tokens that are scored")


class Healing:
    """The runs of all arms, each done once.

    Args:
        options: of the script.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        limits = {"train": 512, "validation": 12, "test": options.test}
        self.task: Task = load_task(
            options.model, options.data, kind="causal-lm", max_length=LENGTH, limits=limits, seed=0
        )
        self.rows = kept(SLUG)

    @cache  # noqa: B019
    def statistics(self) -> compression.Statistics:
        """Of the dense model, gathered once."""
        place: Path = self.options.statistics or self.options.output / "statistics"
        if not place.is_dir():
            compression.gather(self.task.fresh_model(0), calibration_batches(self.task, 128, 4), place)
        return compression.Statistics(place)

    def small(self, arm: str) -> Any:
        """An arm's model before it is healed, its compressed layers and norms free to train."""
        model: Any = self.task.fresh_model(0)
        if arm == DENSE:
            train_factors(model, ["layers"], self.task)
            return model
        place = self.options.output / arm
        if not place.is_dir():
            compression.compress(model, arm, ratio=RATIO, calibration=self.statistics())
            compression.save(model, place)
        model = AutoModelForCausalLM.from_pretrained(place)
        changed = [n for n, m in model.named_modules() if type(m).__name__ == "FactorizedLinear"]
        train_factors(model, changed or ["layers"], self.task)
        return model

    def run(self, arm: str, seed: int | None, lr: float) -> dict[str, Any]:
        """One run: seed 0 is scored on the validation text, others on the test text; None is not healed."""
        wanted = {"part": "run", "arm": arm, "seed": seed, "lr": lr}
        found = next((row for row in self.rows if wanted.items() <= row.items()), None)
        if found is not None:
            return found
        model, status = self.small(arm), "complete"
        if seed is not None:
            status = train_run(model, self.task, Recipe(self.options.steps, BATCH, lr, lr, seed)).status
        split = self.task.validation if seed == 0 else self.task.test
        bits = score_examples(model, self.task, split, 16).scores
        score = float(np.mean(bits)) if status == "complete" else math.inf
        row = {**wanted, "status": status, "bits": score if math.isfinite(score) else None}
        if seed != 0:
            row |= {"examples": [round(float(value), 5) for value in bits]}
        if seed is None:
            row |= {"parameters": sum(p.numel() for p in model.parameters())}
        print({name: value for name, value in row.items() if name != "examples"}, flush=True)
        self.rows.append(row)
        keep(SLUG, self.rows)
        return row

    def rate(self, arm: str) -> float:
        """The learning rate of an arm: better than its neighbours on the grid."""
        tried: dict[int, float] = {}

        def judged(i: int) -> float:
            if i not in tried:
                bits = self.run(arm, 0, HEAL_LR * FACTOR**i)["bits"]
                tried[i] = math.inf if bits is None else bits
            return tried[i]

        best = 1
        while (better := min((best, best + 1, best - 1), key=judged)) != best and len(tried) < MOST:
            best = better
        return HEAL_LR * FACTOR**best

    def paired(self, chosen: dict[str, float]) -> Rows:
        """Each arm before and after, and after against the best arm and the dense one; negative is better."""
        labels = [(arm, state) for arm in chosen for state in ("before", "after")]
        means = np.full((len(labels), len(SEEDS)), np.nan)
        examples: dict[tuple[int, int], np.ndarray] = {}
        for i, (arm, state) in enumerate(labels):
            runs = [(None, 0.0)] if state == "before" else [(seed, chosen[arm]) for seed in SEEDS]
            for k, (seed, lr) in enumerate(runs):
                examples[i, k] = np.array(self.run(arm, seed, lr)["examples"])
                means[i, k] = examples[i, k].mean()
        fixed = [i for i, (_, state) in enumerate(labels) if state == "before"]
        scores = Scores(means, examples, np.zeros(len(labels)), fixed=fixed)
        after = {arm: labels.index((arm, "after")) for arm in chosen}
        first = min((arm for arm in chosen if arm != DENSE), key=lambda arm: means[after[arm]].mean())
        told = []
        for arm, lr in chosen.items():
            against = {"before": labels.index((arm, "before")), "best": after[first]}
            if DENSE in after:
                against |= {"dense": after[DENSE]}
            row: dict[str, Any] = {"part": "paired", "arm": arm, "lr": lr, "steps": self.options.steps}
            row |= {"before": float(means[against["before"], 0]), "after": float(means[after[arm]].mean())}
            for name, other in against.items():
                gap = None if other == after[arm] else scores.difference(after[arm], other)
                ends = (None,) * 3 if gap is None else (gap.value, gap.low, gap.high)
                row |= dict(zip((f"to_{name}", f"to_{name}_low", f"to_{name}_high"), ends, strict=True))
            told.append(row)
        return told


def run(options: argparse.Namespace) -> Rows:
    """What is not there yet of the runs, and the differences between them."""
    healing = Healing(options)
    chosen = {}
    for arm in options.arms.split(","):
        healing.run(arm, None, 0.0)
        chosen[arm] = healing.rate(arm)
        for seed in SEEDS:
            healing.run(arm, seed, chosen[arm])
    runs = [row for row in healing.rows if row["part"] == "run"]
    return [*runs, *healing.paired(chosen)]
