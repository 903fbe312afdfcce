"""What training on a pruned SmolLM2-135M costs in quality: LoRAM at several ratios beside LoRA, on the documentation of
Python's standard library, equal steps, rate and seed.

Run: python benchmarks/loram_smollm2.py [--steps 15] [--ratios 0 0.4]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from _harness import save, table

from eckart.jobs.adapt.finetuning import finetune
from eckart.jobs.adapt.loram_options import LoRAM


def main() -> None:
    """Print and save one row for each arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--align", type=int, default=8)
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.0, 0.4])
    parser.add_argument("--lr", type=float, default=1e-3)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for ratio in given.ratios:
        for align in (0, given.align) if ratio else (0,):
            with tempfile.TemporaryDirectory() as place:
                found = finetune(
                    "smollm2",
                    None,
                    "lora",
                    output=Path(place, "out"),
                    options={"r": 8},
                    loram=LoRAM(ratio, align=align, align_lr=5e-5),
                    steps=given.steps,
                    batch_size=2,
                    lr=given.lr,
                    save_every=given.steps,
                    validate_every=given.steps,
                    kind="causal-lm",
                    max_length=128,
                    limits={"train": 200, "validation": 4, "test": 16},
                )
            told = found["loram"]
            rows.append(
                {
                    "ratio": ratio,
                    "align steps": align,
                    "steps": given.steps,
                    "small M": told["small_parameters"] / 1e6,
                    "no adapter": told["test_without_adapter"]["score"],
                    "small": told["test_of_the_small"]["score"],
                    "recovered": found["test"]["score"],
                    "low": found["test"]["ci_low"],
                    "high": found["test"]["ci_high"],
                    "seconds": found["seconds"],
                }
            )
            print(rows[-1], flush=True)
            save("loram_smollm2", rows)
    table(rows)


if __name__ == "__main__":
    main()
