"""At one size, compressions that look at activations keep most of a language model; those of weights alone do not.

`eckart compare compression` on a language model and text: a fifth of the linear layers' parameters removed, nothing
healed, each method's perplexity in bits per token held against the dense model's, example by example; with the times
of a forward pass and of generation. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import eckart
from evidence._boards import board
from evidence._record import Rows

METHODS = ("svd", "welore", "afm", "whitened-svd", "lord", "modegpt")
COLUMNS = (
    *("label", "state", "score", "to_dense", "to_dense_low", "to_dense_high", "to_best", "to_best_low"),
    *("to_best_high", "ruled_out", "saved_bytes", "forward_ratio", "generation_ratio", "prepare_seconds"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The model and the text, and where the comparison is kept."""
    parser.add_argument("--model", default="smollm2", help="directory of a language model, or smollm2")
    parser.add_argument("--data", required=True, help="directory of train and test text")
    parser.add_argument("--output", type=Path, default=Path("eckart-compression"))
    parser.add_argument("--test", type=int, default=64, help="blocks of 256 tokens that are scored")


def run(options: argparse.Namespace) -> Rows:
    """Compare, and keep the leaderboard with what the page says."""
    eckart.compare_compression(
        options.model,
        options.data,
        kind="causal-lm",
        methods=METHODS,
        ratio=0.2,
        calibration=64,
        batch_size=4,
        max_length=256,
        limits={"train": 256, "validation": 16, "test": options.test},
        output=options.output,
    )
    return board(options.output, COLUMNS, also=("token_accuracy",))
