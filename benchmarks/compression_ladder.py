"""Perplexity of a language model with 5, 10, 20 and 30 % of its linear layers removed, by every closed-form method.

All methods see the same statistics of the same calibration text; rows that are there already are kept.
Needs a dense model on disk and text:

    python benchmarks/compression_ladder.py --model DIR --train TEXT --test TEXT
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _harness import RESULTS, machine
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import eckart.compression as compression
from eckart.errors import InputError
from eckart.files import atomic_write

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "svd": ("svd", {}),
    "welore": ("welore", {"lrc_rule": "break_even"}),
    "whitened-svd": ("whitened-svd", {}),
    "lord": ("lord", {}),
    "modegpt": ("modegpt", {}),
}
RATIOS = (0.05, 0.1, 0.2, 0.3)


def windows(tokenizer: Any, text: Path, length: int, count: int) -> Tensor:
    """The first ``count`` windows of ``length`` tokens of a text."""
    lines = text.read_text("utf-8")
    ids = tokenizer(lines[: length * count * 8], return_tensors="pt").input_ids[0]
    assert len(ids) >= length * count, f"{text} has {len(ids)} tokens only"
    return ids[: length * count].reshape(count, length)


@torch.no_grad()
def perplexity(model: Any, ids: Tensor, batch: int = 4) -> float:
    """exp of the mean cross entropy of all tokens but the first of each window."""
    total = 0.0
    for part in ids.split(batch):
        logits = model(part, use_cache=False).logits[:, :-1]
        total += float(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
        )
    return math.exp(total / (ids.shape[0] * (ids.shape[1] - 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "train", "test"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--calibration", type=int, default=64, help="windows of calibration text")
    parser.add_argument("--windows", type=int, default=64, help="windows of test text")
    parser.add_argument(
        "--statistics", type=Path, help="keep the statistics here, or use those that are here"
    )
    parser.add_argument("--methods", default=",".join(ARMS))
    parser.add_argument("--ratios", default=",".join(map(str, RATIOS)))
    parser.add_argument("--name", default="compression_ladder")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    calibration = windows(tokenizer, arguments.train, arguments.context, arguments.calibration)
    test = windows(tokenizer, arguments.test, arguments.context, arguments.windows)
    about = {
        "context": arguments.context,
        "calibration tokens": calibration.numel(),
        "test tokens": test.numel(),
    }
    path = RESULTS / f"{arguments.name}.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    rows: list[dict[str, Any]] = earlier["rows"] if earlier.get("about") == about else []
    done = {(row["method"], row["ratio"]) for row in rows}

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)
        with atomic_write(path) as temporary:
            text = json.dumps({"machine": machine(), "about": about, "rows": rows}, indent=1)
            temporary.write_text(text + "\n")

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    if ("dense", 0.0) not in done:
        keep({"method": "dense", "ratio": 0.0, "removed": 0.0, "perplexity": perplexity(model, test)})
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        where = arguments.statistics or Path(place, "statistics")
        if not where.is_dir():
            compression.gather(model, [{"input_ids": part} for part in calibration.split(4)], where)
        statistics, gathering = compression.Statistics(where), time.perf_counter() - started
        for ratio in map(float, arguments.ratios.split(",")):
            for name in arguments.methods.split(","):
                if (name, ratio) in done:
                    continue
                method, options = ARMS[name]
                small = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
                started = time.perf_counter()
                try:
                    compression.compress(small, method, ratio=ratio, calibration=statistics, **options)
                except InputError as error:
                    keep({"method": name, "ratio": ratio, "refused": str(error)})
                    continue
                seconds = time.perf_counter() - started
                report = compression.report(small)
                assert report is not None
                keep(
                    {
                        "method": name,
                        "ratio": ratio,
                        "removed": report.removed,
                        "parameters": report.parameters_after,
                        "perplexity": perplexity(small, test),
                        "seconds": seconds + (gathering if name not in ("svd", "welore") else 0),
                        "peak MiB of the process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                    }
                )


if __name__ == "__main__":
    main()
