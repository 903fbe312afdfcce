"""Whether each adapter and rule trains: validation loss step by step beside LoRA's, at an equal budget.

MiniLM on the built-in docstrings, 0.5 % of the model's parameters. Each arm's rate is better than a third of it and
than three times it, by the loss on the validation split at the end of a run of one seed; the search begins at the
largest rate that `eckart compare` tries, under a rule at the adapter's best. The head has the best rate of the head
alone everywhere. Then three other seeds, which see the same batches and start from the same head in all arms. Runs that
are kept are not done again.
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
from eckart.jobs.compare.contender import Contender
from eckart.jobs.compare.contenders import SPACING, contenders
from eckart.jobs.compare.names import FULL, HEAD_ONLY, LORA
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
TUNING = 0
"""The seed that tunes; the others, from 1 up, give the curves."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=24, help="updates of a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", help="names with commas; every adapter and rule when left out")


def names() -> list[str]:
    """All arms: the head alone, LoRA, the rules, every registered adapter and prompt, and all weights."""
    from eckart.adapters import ADAPTERS, PROMPTS

    return list(dict.fromkeys([HEAD_ONLY, LORA, *RULED, *sorted([*ADAPTERS, *PROMPTS]), FULL]))


class Runs:
    """The runs of one task, done when first asked for and kept."""

    def __init__(self, task: Task, steps: int) -> None:
        self.task, self.steps = task, steps
        self.rows = [row for row in kept(SLUG) if row.get("steps") == steps]

    def run(self, arm: Contender, lr: float, head_lr: float, seed: int) -> dict[str, Any]:
        """One run; that of the seed that tunes is scored at its end alone."""
        part = "tuning" if seed == TUNING else "run"
        key = {"part": part, "arm": arm.name, "seed": seed, "lr": lr, "head_lr": head_lr, "steps": self.steps}
        for row in self.rows:
            if key.items() <= row.items():
                return row
        points = [round(self.steps * (i + 1) / POINTS) for i in range(POINTS)]
        points = points if part == "run" else points[-1:]
        began = time.process_time()
        model = arm.prepare(self.task.fresh_model(seed).to(device()), self.task, seed)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        recipe = Recipe(self.steps, BATCH, lr, head_lr, seed, arm.optimizer)
        acting = [rule.callback() for rule in arm.rules(self.task, recipe)]
        training = train_run(model, self.task, recipe, rungs=points, callbacks=acting)
        losses = [found.loss for _, found in training.validations]
        ended = len(losses) == len(points) and all(map(math.isfinite, losses))
        row = {**key, "label": arm.label, "trained": trained, "at": points}
        row |= {"validation": losses if ended else None, "seconds": time.process_time() - began}
        self.rows.append(row)
        self.keep()
        told = f"{losses[-1]:.4f}" if ended else training.status
        print(f"{arm.name} seed {seed} lr {lr:g}: {told} ({row['seconds']:.0f} s)", flush=True)
        return row

    def tuned(self, arm: Contender, head_lr: float | None, start: float) -> float:
        """The best rate of an arm, better than both of its neighbours, from a first one on.

        Args:
            arm: the method.
            head_lr: of the head; its own rate where it is None.
            start: the rate that is tried first.
        """
        tried: dict[float, float] = {}

        def judge(lr: float) -> float:
            found = self.run(arm, lr, head_lr or lr, TUNING)["validation"]
            tried[lr] = found[-1] if found else math.inf
            return tried[lr]

        best = start
        judge(start)
        while len(tried) < MOST_RATES:
            beside = (float(f"{best * factor:.2g}") for factor in (SPACING, 1 / SPACING))
            for lr in beside:
                if lr not in tried:
                    judge(lr)
            if best == (best := min(tried, key=tried.__getitem__)):
                break
        self.rows = [r for r in self.rows if r["part"] == "tuning" or r["arm"] != arm.name or r["lr"] == best]
        return best

    def keep(self) -> None:
        keep(SLUG, [*self.rows, *paired(self.rows)])


def paired(rows: Rows) -> Rows:
    """Each arm's loss at the end minus LoRA's, of the same seeds."""
    runs = [row for row in rows if row["part"] == "run" and row["validation"]]
    last = {(row["arm"], row["seed"]): row["validation"][-1] for row in runs}
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
    head = everyone[HEAD_ONLY]
    head_lr = runs.tuned(head, None, head.trials[0])
    best = {HEAD_ONLY: head_lr}
    for name in dict.fromkeys([HEAD_ONLY, LORA, *wanted]):
        arm = everyone[name]
        first = best.get(name.partition("+")[0], arm.learning_rates[-1])
        lr = best[name] = best[name] if name in best else runs.tuned(arm, head_lr, first)
        for seed in range(1, options.seeds + 1):
            runs.run(arm, lr, head_lr, seed)
    found = paired(runs.rows)
    table(found)
    return [*runs.rows, *found]
