"""A federation small enough to run in seconds: a tiny BERT on disk, sentences in a CSV file, and a plan."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tiny_models import WORDS, save_bert

from eckart.jobs.federate.plan import Plan
from eckart.tasks.task import Task

GOOD, BAD = WORDS[:4], WORDS[4:8]


def write_files(directory: Path, rows: int = 120) -> dict[str, str]:
    """A model and a data set; returns their places as options."""
    draw = random.Random(0)
    lines = ["text,label"]
    for i in range(rows):
        words = [draw.choice(WORDS[8:]) for _ in range(draw.randint(3, 6))] + [
            draw.choice(BAD if i % 2 else GOOD)
        ]
        lines.append(f"{' '.join(words)},{'bad' if i % 2 else 'good'}")
    (directory / "reviews.csv").write_text("\n".join(lines) + "\n")
    return {"model": str(save_bert(directory / "bert")), "data": str(directory / "reviews.csv")}


def small(files: dict[str, str], output: Path, **options: Any) -> dict[str, Any]:
    """Arguments of `federate`."""
    return {
        **files,
        "output": output,
        "clients": 4,
        "fraction": 0.5,
        "rounds": 2,
        "partition": "dirichlet:1",
        "ranks": [2],
        "lora_alpha": 4.0,
        "batch_size": 8,
        "max_length": 16,
        "lr": 1e-2,
        "deadline": 120.0,
    } | options


def plan_of(
    files: dict[str, str], task: Task, method: str, strategy: str = "fedit", **options: object
) -> Plan:
    """The plan of a small run whose task is loaded."""
    return Plan(
        model=files["model"], data=files["data"], task={"max_length": 16}, fingerprint=task.fingerprint,
        strategy=strategy, options={}, clients=3, fraction=1.0, min_clients=1, rounds=1, partition="iid", ranks=[4],
        lora_alpha=8.0, target_modules=["query", "intermediate.dense"], local_epochs=1, batch_size=8, lr=0.01,
        head_lr=0.01, robust=None, malicious=0, clip=None, noise=0.0, delta=None, norm_ratio=20.0, seed=0,
        method=method.strip(), method_options=dict(options),
    )  # fmt: skip
