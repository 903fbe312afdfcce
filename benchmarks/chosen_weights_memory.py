"""Peak memory of a training step, the model included: SaRA at a tenth of the weights against training all of them, and
SNELLA against LoRA; each arm in a fresh process.

Run: python benchmarks/chosen_weights_memory.py [--tokens 128 1024]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from _harness import MODELS, save, table

ARMS = ("all weights", "sara", "lora", "snell", "snella")
_MEASURE = Path(__file__).with_name("peak_memory.py")


def main() -> None:
    """Print and save one row for each token count and arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", nargs="+", type=int, default=[128, 1024])
    model = MODELS["d1024"][0]()
    held = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    rows = []
    for tokens in parser.parse_args().tokens:
        peaks = {}
        for arm in ARMS:
            command = [sys.executable, str(_MEASURE), "--worker", "d1024", arm, str(tokens)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            peaks[arm] = held + json.loads(output.splitlines()[-1])["peak_mib"]
        rows += [
            {
                "model": "d1024",
                "tokens": tokens,
                "arm": arm,
                "peak MiB": peak,
                "x all weights": peak / peaks["all weights"],
                "x lora": peak / peaks["lora"],
            }
            for arm, peak in peaks.items()
        ]
    table(rows)
    save("chosen_weights_memory", rows)


if __name__ == "__main__":
    main()
