"""Every adapter at an equal budget on SST-2: which scores best after forty steps.

`eckart compare` on the Stanford Sentiment Treebank: MiniLM-L6, 4,000 training phrases, 300 for tuning, the 872
development sentences as test set; 0.5 % of the model's parameters, three learning rates, two seeds, 40 steps of 16
examples a final run. Ten minutes on two idle cores; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import eckart
from benchmarks._harness import table
from eckart.jobs.compare.advice import advice
from eckart.jobs.compare.examples import read_examples
from eckart.jobs.compare.leaderboard import leaderboard
from evidence._record import Rows

COLUMNS = (
    "label",
    "score",
    "ci_low",
    "ci_high",
    "trained_parameters",
    "saved_bytes",
    "peak_memory_mb",
    "step_time_ratio",
    "lr",
    "seeds",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The data, and where the comparison is kept."""
    parser.add_argument(
        "--data", required=True, help="directory of train.parquet and validation.parquet (sentence, label)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("eckart-sst2"), help="directory of the comparison"
    )


def run(options: argparse.Namespace) -> Rows:
    """Compare, and keep the leaderboard with what the page advised."""
    results = eckart.compare(
        data=options.data,
        limits={"train": 4000, "validation": 300},
        steps=40,
        seeds=2,
        max_length=48,
        output=options.output,
    )
    board = leaderboard(results)
    rows = [{name: row[name] for name in COLUMNS} for row in board.to_dict("records")]
    table(rows)
    return [*rows, {"advice": advice(results, read_examples(options.output / "examples.parquet"))}]
