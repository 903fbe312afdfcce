"""A compressed language model keeps 90 to 95 % of its zero-shot accuracy with 25 to 30 % of its linear layers removed.

Which of four passages goes on a text? Questions are made of the test text: a context, the words that follow it, and
three passages of as many words that begin near by; the choice is the likeliest one. Nothing is trained, and all methods
see the same statistics of the training text. What is there already is kept.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import eckart.compression as compression
from benchmarks._harness import table
from benchmarks._paired import gap, share, told
from eckart.jobs.compare.names import DENSE
from eckart.tasks.scoring import score_examples
from eckart.tasks.smaller import calibration_batches
from eckart.tasks.task import Task, load_task
from evidence._record import Rows, keep, kept

SLUG = "zero-shot"
METHODS = ("modegpt", "whitened-svd", "lord")
"""Of the other closed-form methods nothing is left at this size: docs/evidence/compression.md."""
RATIOS = (0.25, 0.3)
CONTEXT, PASSAGE, NEAR = 32, 8, 200
"""Words of the context and of a passage, and how far from the right one a wrong one begins, at most."""
CHOICES, SEED = 4, 0


def arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the text, and where the questions and what is compressed are kept."""
    parser.add_argument("--model", default="smollm2", help="directory of a language model, or smollm2")
    parser.add_argument("--data", required=True, type=Path, help="directory of train.txt and test.txt")
    parser.add_argument("--output", type=Path, default=Path("eckart-zero-shot"))
    parser.add_argument("--statistics", type=Path, help="those that another claim's script has kept")
    parser.add_argument("--questions", type=int, default=300)


def questions(words: Sequence[str], count: int) -> pd.DataFrame:
    """Contexts spread evenly over a text, with four passages each and which of them follows."""
    draw, rows = random.Random(SEED), []
    stride = (len(words) - 2 * NEAR - CONTEXT - PASSAGE) // count
    for first in range(NEAR, NEAR + count * stride, stride):
        right = first + CONTEXT
        places = [
            *range(right - NEAR, first - PASSAGE + 1),
            *range(right + PASSAGE, right + NEAR + 1),
        ]
        begins = [right, *draw.sample(places, CHOICES - 1)]
        draw.shuffle(begins)
        passages = [" ".join(words[at : at + PASSAGE]) for at in begins]
        rows.append({"ctx": " ".join(words[first:right]), "endings": passages, "label": begins.index(right)})
    return pd.DataFrame(rows)


def asked(options: argparse.Namespace) -> Task:
    """The task of the questions; those of the training text are there because a task has a training split."""
    place: Path = options.output / "questions"
    place.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 8), ("test", options.questions)):
        words = (options.data / f"{part}.txt").read_text("utf-8").split()
        questions(words, count).to_parquet(place / f"{part}.parquet")
    return load_task(options.model, place, kind="multiple-choice", max_length=128, seed=SEED)


def statistics(options: argparse.Namespace, model: Any) -> compression.Statistics:
    """Of the dense model on the training text, 64 blocks of 256 tokens, gathered once."""
    place: Path = options.statistics or options.output / "statistics"
    if not place.is_dir():
        text = load_task(options.model, options.data, kind="causal-lm", max_length=256, seed=SEED)
        compression.gather(model, calibration_batches(text, 64, 4), place)
    return compression.Statistics(place)


def run(options: argparse.Namespace) -> Rows:
    """What is not there yet, and each arm held against the dense model."""
    task, rows = asked(options), kept(SLUG)
    about = {"questions": options.questions, "context": CONTEXT, "passage": PASSAGE, "seed": SEED}
    arms = [(DENSE, 0.0), *((method, ratio) for ratio in RATIOS for method in METHODS)]
    found: dict[tuple[str, float], dict[str, Any]] = {}
    for method, ratio in arms:
        wanted = {"arm": method, "ratio": ratio, **about}
        row = next((row for row in rows if wanted.items() <= row.items()), None)
        if row is None:
            model: Any = task.fresh_model(0)
            if method != DENSE:
                compression.compress(model, method, ratio=ratio, calibration=statistics(options, model))
            scores = score_examples(model, task, task.test, 4).scores
            row = {**wanted, "accuracy": float(scores.mean()), "right": scores.tolist()}
            keep(SLUG, rows := [*rows, row])
            print({name: value for name, value in row.items() if name != "right"}, flush=True)
        found[method, ratio] = row
    right = {arm: np.array(row["right"]) for arm, row in found.items()}
    for (method, ratio), row in found.items():
        if method != DENSE:
            own, dense = right[method, ratio], right[DENSE, 0.0]
            row |= told("to_dense", gap(own, dense)) | told("kept", share(own, dense))
            if method != METHODS[0]:
                row |= told("to_modegpt", gap(own, right[METHODS[0], ratio]))
    table([{name: value for name, value in row.items() if name != "right"} for row in found.values()])
    return list(found.values())
