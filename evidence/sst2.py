"""Every adapter at an equal budget on SST-2: which of them are left after a race of three seeds.

`eckart compare` on the Stanford Sentiment Treebank: MiniLM-L6, 4,000 training phrases, 500 for tuning, the 872
development sentences as test set; 0.5 % of the model's parameters, every method's learning rates raced, 48 steps of 16
examples a final run, at most three seeds. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import eckart
from evidence._boards import board
from evidence._record import Rows

COLUMNS = (
    *("label", "state", "score", "to_best", "to_best_low", "to_best_high", "ruled_out", "lr", "seeds"),
    *("trained_parameters", "saved_bytes", "peak_memory_mb", "step_time_ratio"),
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
    """Compare, and keep the leaderboard with what the page says."""
    eckart.compare(
        data=options.data,
        limits={"train": 4000, "validation": 500},
        steps=48,
        seeds=3,
        max_length=48,
        output=options.output,
    )
    return board(options.output, COLUMNS)
