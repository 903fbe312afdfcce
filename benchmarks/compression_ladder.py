"""Perplexity and accuracy of a language model with 5 to 30 % of its linear layers removed, by closed-form methods.

All methods see the same statistics of the same calibration text, and each is held against the dense model window by
window. Rows that are there already are kept. Needs a dense model on disk and text:

    python benchmarks/compression_ladder.py --model DIR --train TEXT --test TEXT
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import RESULTS, machine
from _paired import gap, share, told
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import eckart.compression as compression
from eckart.files import atomic_write

METHODS: dict[str, dict[str, Any]] = {
    "modegpt": {},
    "whitened-svd": {},
    "lord": {},
    "welore": {"lrc_rule": "break_even"},
    "svd": {},
}
RATIOS = (0.05, 0.1, 0.2, 0.3)


def windows(tokenizer: Any, text: Path, length: int, count: int) -> Tensor:
    """The first ``count`` windows of ``length`` tokens of a text."""
    lines = text.read_text("utf-8")
    ids = tokenizer(lines[: length * count * 8], return_tensors="pt").input_ids[0]
    assert len(ids) >= length * count, f"{text} has {len(ids)} tokens only"
    return ids[: length * count].reshape(count, length)


@torch.no_grad()
def scores(model: Any, ids: Tensor, batch: int = 4) -> dict[str, np.ndarray]:
    """Of each window, over its tokens but the first: bits per token, and the share that the model finds likeliest."""
    bits, right = [], []
    for part in ids.split(batch):
        logits, wanted = model(part, use_cache=False).logits[:, :-1], part[:, 1:]
        losses = torch.nn.functional.cross_entropy(logits.mT, wanted, reduction="none")
        bits.append(losses.double().mean(1) / math.log(2))
        right.append((logits.argmax(2) == wanted).double().mean(1))
    return {"bits": torch.cat(bits).numpy(), "right": torch.cat(right).numpy()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "train", "test"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--calibration", type=int, default=64, help="windows of calibration text")
    parser.add_argument("--windows", type=int, default=64, help="windows of test text")
    parser.add_argument(
        "--statistics", type=Path, help="keep the statistics here, or use those that are here"
    )
    return parser.parse_args()


class Ladder:
    """The rows, each measured once.

    Args:
        options: of the script.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.model = options.model
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        self.calibration = windows(tokenizer, options.train, options.context, options.calibration)
        self.test = windows(tokenizer, options.test, options.context, options.windows)
        sizes = {"calibration tokens": self.calibration.numel(), "test tokens": self.test.numel()}
        self.about = {"context": options.context, **sizes}
        self.path = RESULTS / "compression_ladder.json"
        earlier = json.loads(self.path.read_text("utf-8")) if self.path.is_file() else {}
        self.rows: list[dict[str, Any]] = earlier["rows"] if earlier.get("about") == self.about else []

    def row(self, method: str, ratio: float) -> dict[str, Any] | None:
        wanted = {"method": method, "ratio": ratio}
        return next((row for row in self.rows if wanted.items() <= row.items()), None)

    def keep(self, method: str, ratio: float, model: Any, more: Mapping[str, Any]) -> None:
        """Score a model, and write its row with those before it."""
        found = scores(model, self.test)
        row = {"method": method, "ratio": ratio, **more, "perplexity": 2 ** float(found["bits"].mean())}
        row |= {"accuracy": float(found["right"].mean())}
        if dense := self.row("dense", 0.0):
            row |= told("to_dense", gap(found["bits"], np.array(dense["bits"])))
            row |= told("kept", share(found["right"], np.array(dense["right"])))
        self.rows.append(row | {name: values.tolist() for name, values in found.items()})
        print(row, flush=True)
        everything = {"machine": machine(), "about": self.about, "rows": self.rows}
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(everything, indent=1) + "\n", "utf-8")

    def dense(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)

    def run(self, place: Path) -> None:
        """What is not there yet."""
        if self.row("dense", 0.0) is None:
            self.keep("dense", 0.0, self.dense(), {"removed": 0.0})
        if not place.is_dir():
            compression.gather(
                self.dense(), [{"input_ids": part} for part in self.calibration.split(4)], place
            )
        statistics = compression.Statistics(place)
        for ratio, (name, options) in itertools.product(RATIOS, METHODS.items()):
            if self.row(name, ratio) is not None:
                continue
            small, started = self.dense(), time.process_time()
            compression.compress(small, name, ratio=ratio, calibration=statistics, **options)
            seconds, report = time.process_time() - started, compression.report(small)
            assert report is not None
            sizes = {"removed": report.removed, "parameters": report.parameters_after}
            self.keep(name, ratio, small, {**sizes, "processor s": seconds})


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as place:
        Ladder(options).run(options.statistics or Path(place, "statistics"))


if __name__ == "__main__":
    main()
