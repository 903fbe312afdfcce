"""Tokens per second of compressed models against the dense one: prefill, and generation with a cache.

All models live in one process and take turns. Needs a dense model on disk and text for calibration:

    python benchmarks/compression_speed.py --model DIR --train TEXT
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _harness import interleave, save, table
from compression_ladder import windows
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import eckart.compression as compression

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "modegpt": ("modegpt", {"multiple_of": 8, "epsilon": 1e6}),
    "whitened-svd": ("whitened-svd", {}),
}


def prefill(model: Any, ids: Tensor) -> Callable[[], None]:
    @torch.inference_mode()
    def step() -> None:
        model(ids, use_cache=False, logits_to_keep=1)

    return step


def generation(model: Any, ids: Tensor, tokens: int) -> Callable[[], None]:
    @torch.inference_mode()
    def step() -> None:
        model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--statistics", type=Path, help="what compression_ladder.py has kept")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--ratios", default="0.1,0.2,0.3,0.4")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    ids = windows(tokenizer, arguments.train, 256, 16)
    calibration: Any = [{"input_ids": part} for part in ids.split(4)]
    if arguments.statistics:
        calibration = compression.Statistics(arguments.statistics)
    rows: list[dict[str, Any]] = []
    for ratio in map(float, arguments.ratios.split(",")):
        models = {"dense": AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)}
        for name, (method, options) in ARMS.items():
            small = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
            models[name] = compression.compress(
                small, method, ratio=ratio, calibration=calibration, **options
            )
        for what, make, tokens in (
            ("prefill", lambda m: prefill(m, ids[:1]), 256),
            ("generation", lambda m: generation(m, ids[:1, :16], 12), 12),
        ):
            steps = {name: make(model) for name, model in models.items()}
            medians = interleave(steps, arguments.seconds, warm_up=1)
            for name, seconds in medians.items():
                found = compression.report(models[name])
                rows.append(
                    {
                        "arm": name,
                        "ratio": ratio,
                        "what": what,
                        "removed": 0.0 if found is None else found.removed,
                        "weight MB": sum(p.numel() * p.element_size() for p in models[name].parameters())
                        / 1e6,
                        "tokens/s": tokens / seconds,
                        "x dense": medians["dense"] / seconds,
                    }
                )
        save("compression_speed", rows)
    table(rows)


if __name__ == "__main__":
    main()
