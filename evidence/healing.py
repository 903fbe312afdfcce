"""Most of what a few steps of training give a compressed language model they give the dense one too; the order stays.

A fifth of the linear layers' parameters, or other shares, is removed by three methods, all from the same statistics;
then what was compressed, and the norms, train on text of the same kind, as `eckart compress --heal` trains them. The
dense model's layers train as long. The learning rate of each is the best of a grid on the validation text, no
neighbour better, with seed 0; the test text is scored with three further seeds. What is there already is kept.
"""

from __future__ import annotations

import argparse
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student
from transformers import AutoModelForCausalLM

import eckart.compression as compression
from benchmarks._paired import told
from eckart.jobs.compare.names import DENSE
from eckart.tasks.scoring import score_examples
from eckart.tasks.smaller import HEAL_LR, calibration_batches, train_factors
from eckart.tasks.task import Task, load_task
from eckart.tasks.trainer import Recipe, train_run
from evidence._grids import least
from evidence._record import Rows, keep, kept

SLUG = "healing"
METHODS = ("modegpt", "whitened-svd", "lord")
"""The other closed-form methods leave nothing to heal at this size: docs/evidence/compression.md."""
FACTOR = 10**0.5
"""Ratio of neighbouring learning rates."""
SEEDS = (1, 2, 3)
LENGTH, BATCH = 128, 1
Arm = tuple[str, float]
"""A method and the share that it removes."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the text, where what is compressed is kept, and how long is trained."""
    parser.add_argument("--model", default="smollm2", help="directory of a language model, or smollm2")
    parser.add_argument("--data", required=True, help="directory of train and test text")
    parser.add_argument("--output", type=Path, default=Path("eckart-healing"))
    parser.add_argument(
        "--statistics", type=Path, help="those that benchmarks/compression_ladder.py has kept"
    )
    parser.add_argument("--ratios", default="0.2", help="shares that are removed, with commas")
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

    def small(self, arm: Arm) -> Any:
        """An arm's model before it is healed, its compressed layers and norms free to train."""
        method, ratio = arm
        model: Any = self.task.fresh_model(0)
        if method == DENSE:
            train_factors(model, ["layers"], self.task)
            return model
        place = self.options.output / f"{method}-{ratio}"
        if not place.is_dir():
            compression.compress(model, method, ratio=ratio, calibration=self.statistics())
            compression.save(model, place)
        model = AutoModelForCausalLM.from_pretrained(place)
        changed = [n for n, m in model.named_modules() if type(m).__name__ == "FactorizedLinear"]
        train_factors(model, changed or ["layers"], self.task)
        return model

    def run(self, arm: Arm, seed: int | None, lr: float) -> dict[str, Any]:
        """One run: seed 0 is scored on the validation text, others on the test text; None is not healed."""
        steps = 0 if seed is None else self.options.steps
        wanted = {"part": "run", "arm": arm[0], "ratio": arm[1], "seed": seed, "steps": steps, "lr": lr}
        found = next((row for row in self.rows if wanted.items() <= row.items()), None)
        if found is not None:
            return found
        model, status = self.small(arm), "complete"
        if seed is not None:
            status = train_run(model, self.task, Recipe(steps, BATCH, lr, lr, seed)).status
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

    def rate(self, arm: Arm) -> float:
        """The learning rate of an arm: better than its neighbours on the grid."""

        def loss(i: int) -> float:
            bits = self.run(arm, 0, HEAL_LR * FACTOR**i)["bits"]
            return math.inf if bits is None else float(bits)

        return HEAL_LR * FACTOR ** least(loss, start=1)

    def bits(self, arm: Arm, lr: float | None) -> np.ndarray:
        """Of each seed and block of test text, healed at this rate; one row when it is not healed (None)."""
        runs = [(None, 0.0)] if lr is None else [(seed, lr) for seed in SEEDS]
        return np.array([self.run(arm, *run)["examples"] for run in runs])

    def paired(self, chosen: dict[Arm, float]) -> Rows:
        """Each arm healed against itself before, and against the dense model and the best of its size, both at once and
        healed; and what healing gives it beyond what it gives the dense model. Negative is better."""
        states = {
            "at_once": {arm: self.bits(arm, None) for arm in chosen},
            "healed": {arm: self.bits(arm, lr) for arm, lr in chosen.items()},
        }
        dense = (DENSE, 0.0)
        found: Rows = []
        for arm, lr in chosen.items():
            before, after = states["at_once"][arm], states["healed"][arm]
            row = {"part": "paired", "arm": arm[0], "ratio": arm[1], "lr": lr, "steps": self.options.steps}
            row |= {"before": float(before.mean()), "after": float(after.mean())} | gap(
                "before", after - before
            )
            for when, found in states.items():
                best = min((a for a in chosen if a[1] == arm[1]), key=lambda a, found=found: found[a].mean())
                for name, other in (("best", best), ("dense", dense)):
                    row |= gap(f"{name}_{when}", None if other == arm else found[arm] - found[other])
            gained = after - before - (states["healed"][dense] - states["at_once"][dense])
            found.append(row | gap("gain_of_dense", None if arm == dense else gained))
        return found


def gap(name: str, differences: np.ndarray | None) -> dict[str, float | None]:
    """The mean of differences by seed and block, with an interval of 95 % for other seeds and other blocks:
    Var = Var_i(d̄_·i) / n + Var_k(d̄_k·) / K, Student's degrees of freedom after Satterthwaite (1946)."""
    if differences is None:
        return told(f"to_{name}", None)
    parts = [
        (float(means.var(ddof=1)) / len(means), len(means) - 1)
        for means in (differences.mean(0), differences.mean(1))
        if len(means) > 1
    ]
    variance = sum(part for part, _ in parts)
    degrees = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    value, half = float(differences.mean()), float(student.isf(0.025, degrees)) * math.sqrt(variance)
    return told(f"to_{name}", (value, value - half, value + half))


def run(options: argparse.Namespace) -> Rows:
    """What is not there yet of the runs, and the differences between them."""
    healing = Healing(options)
    chosen: dict[Arm, float] = {}
    ratios = map(float, options.ratios.split(","))
    for arm in [(DENSE, 0.0), *((method, ratio) for ratio in ratios for method in METHODS)]:
        healing.run(arm, None, 0.0)
        chosen[arm] = healing.rate(arm)
        for seed in SEEDS:
            healing.run(arm, seed, chosen[arm])
    runs = [row for row in healing.rows if row["part"] == "run"]
    return [*runs, *healing.paired(chosen)]
