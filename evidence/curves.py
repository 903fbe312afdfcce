"""That each adapter and rule trains: validation loss step by step beside LoRA's, at an equal budget.

MiniLM on the built-in docstrings, 0.5 % of the model's parameters. Each arm's rate is the best of the grid that
`eckart compare` tries, by the validation loss of runs of half the steps, and the grid grows until its best is inside;
the head has the best rate of the head-only arm everywhere. Then three other seeds, which see the same batches and start
from the same head in all arms. Runs that are kept are not done again.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks._harness import table
from eckart.jobs.compare.contenders import Contender, contenders, outward
from eckart.jobs.compare.names import FULL, HEAD_ONLY, LORA
from eckart.jobs.compare.plan import TUNE_SHARE
from eckart.jobs.compare.presets import EMBEDDED
from eckart.tasks.instruments import device
from eckart.tasks.task import Task, load_task
from eckart.tasks.trainer import Recipe, train_run
from evidence._record import Rows, keep, kept
from evidence.structured_pretraining import half_interval

SLUG = "curves"
RULED = (
    *("lora+allora", "lora+lora-ggpo", "lora+lora-mgpo", "lora+diffora", "lora-core+increlora"),
    *("lora-core+triadaptlora", "sara+sara-selection", "snella+snella-allocation"),
)
"""Every rule, on the adapter that it is for."""
BUDGET, BATCH, LENGTH, HELD_OUT = "0.5%", 8, 32, 96
POINTS = 4
"""Points of a curve."""
MOST_RATES = 7


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=24, help="updates of a final run; a tuning run has half")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", help="names with commas; all when left out")


def names() -> list[str]:
    """All arms; those after the rules are every registered adapter and prompt."""
    from eckart.adapters import ADAPTERS, PROMPTS

    return list(dict.fromkeys([HEAD_ONLY, LORA, *RULED, *sorted([*ADAPTERS, *PROMPTS]), FULL]))


class Runs:
    """The runs of one task, done when first asked for and kept."""

    def __init__(self, task: Task, steps: int) -> None:
        self.task, self.steps = task, steps
        self.rows = [row for row in kept(SLUG) if row["part"] == "run" and row["of"] in self._lengths]

    @property
    def _lengths(self) -> tuple[int, int]:
        return self.steps, max(1, round(TUNE_SHARE * self.steps))

    def run(self, arm: Contender, lr: float, head_lr: float, seed: int) -> dict[str, Any]:
        """One run: seed 0 is of half the steps and tunes, the others give the curve."""
        steps = self._lengths[seed == 0]
        key = {"part": "run", "arm": arm.name, "seed": seed, "lr": lr, "head_lr": head_lr, "of": steps}
        for row in self.rows:
            if key.items() <= row.items():
                return row
        points = [round(steps * (i + 1) / POINTS) for i in range(POINTS)] if seed else [steps]
        began = time.process_time()
        model = arm.prepare(self.task.fresh_model(seed).to(device()), self.task, seed)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        recipe = Recipe(steps, BATCH, lr, head_lr, seed, arm.optimizer)
        acting = [rule.callback() for rule in arm.rules(self.task, BATCH, seed)]
        training = train_run(model, self.task, recipe, rungs=points, callbacks=acting)
        losses = [found.loss for _, found in training.validations]
        ended = len(losses) == len(points) and all(map(math.isfinite, losses))
        row = {**key, "label": arm.label, "trained": trained, "steps": points, "ended": ended}
        row |= {
            "validation": losses if ended else None,
            "score": training.validations[-1][1].score if ended else None,
        }
        row["cpu_seconds"] = time.process_time() - began
        self.rows.append(row)
        keep(SLUG, self.rows)
        told = f"{losses[-1]:.4f}" if ended else training.status
        print(f"{arm.name} seed {seed} lr {lr:g}: {told} ({row['cpu_seconds']:.0f} s)", flush=True)
        return row

    def tuned(self, arm: Contender, head_lr: float | None) -> float:
        """The best rate of an arm, inside of those tried; the head's own where it is None."""
        tried: dict[float, float] = {}

        def judge(lr: float) -> None:
            row = self.run(arm, lr, head_lr or lr, 0)
            tried[lr] = row["validation"][-1] if row["ended"] else math.inf

        for lr in arm.trials:
            judge(lr)
        while len(tried) < MOST_RATES:
            further = outward(sorted(tried), min(tried, key=tried.__getitem__))
            if further is None:
                break
            judge(further)
        return min(tried, key=tried.__getitem__)


def paired(rows: Rows) -> Rows:
    """Each arm's loss at the end minus LoRA's, of the same seeds."""
    last = {(row["arm"], row["seed"]): row["validation"][-1] for row in rows if row["seed"] and row["ended"]}
    found: Rows = []
    for arm in dict.fromkeys(arm for arm, _ in last):
        seeds = [seed for name, seed in last if name == arm and (LORA, seed) in last]
        gaps = [last[arm, seed] - last[LORA, seed] for seed in seeds]
        if arm != LORA and len(gaps) > 1:
            row = {"part": "paired", "arm": arm, "seeds": len(gaps), "difference": float(np.mean(gaps))}
            found.append(row | {"half of the 95 % interval": half_interval(gaps)})
    return found


def run(options: argparse.Namespace) -> Rows:
    """What is not there yet of the runs, and every arm against LoRA."""
    torch.set_num_threads(1)
    task = load_task(None, None, max_length=LENGTH, limits={"validation": HELD_OUT}, seed=0)
    wanted: Sequence[str] = options.arms.split(",") if options.arms else names()
    everyone = {arm.name: arm for arm in contenders(task, wanted, BUDGET, None, EMBEDDED.trials, None)}
    runs = Runs(task, options.steps)
    head_lr = runs.tuned(everyone[HEAD_ONLY], None)
    for name in dict.fromkeys([HEAD_ONLY, LORA, *wanted]):
        arm = everyone[name]
        lr = head_lr if name == HEAD_ONLY else runs.tuned(arm, head_lr)
        for seed in range(1, options.seeds + 1):
            runs.run(arm, lr, head_lr, seed)
    found = paired(runs.rows)
    table(found)
    return [*runs.rows, *found]
