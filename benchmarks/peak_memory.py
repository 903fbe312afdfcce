"""Peak memory of training steps beyond the model itself, each arm in a fresh process.

Run: python benchmarks/peak_memory.py [--models minilm d1024] [--tokens 1024 4096]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import warnings

from _arms import ARMS
from _harness import MODELS, held_mib, make_arm, make_step, save, table

MAPPED = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
"""glibc gives every freed block of 64 KiB or more back at once: what it would keep differs from process to process."""


def measure(model: str, arm_name: str, tokens: int) -> dict[str, float]:
    """MiB by which the peak resident size of three steps exceeds the size before the first one."""
    warnings.filterwarnings("ignore")
    step = make_step(make_arm(model, ARMS[arm_name]), model, tokens)
    small = make_step(make_arm("d1024", None), "d1024", 2)  # loads the kernels and the autograd threads
    small()
    gc.collect()
    before = held_mib("VmRSS")
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")  # resets the high-water mark
    for _ in range(3):
        step()
    return {"peak_mib": held_mib("VmHWM") - before}


def main() -> None:
    """Print and save one row for each model, token count and arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--worker", nargs=3, metavar=("MODEL", "ARM", "TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        model, arm, tokens = options.worker
        print(json.dumps(measure(model, arm, int(tokens))))
        return
    rows = []
    for model in options.models:
        for tokens in options.tokens:
            for arm in options.arms:
                command = [sys.executable, __file__, "--worker", model, arm, str(tokens)]
                output = subprocess.run(
                    command, capture_output=True, text=True, check=True, env={**os.environ, **MAPPED}
                ).stdout
                peak = json.loads(output.splitlines()[-1])["peak_mib"]
                rows.append({"model": model, "tokens": tokens, "arm": arm, "peak MiB": peak})
            mine = [row for row in rows if row["model"] == model and row["tokens"] == tokens]
            lora = next((row["peak MiB"] for row in mine if row["arm"] == "lora"), None)
            for row in mine:
                row["x lora"] = row["peak MiB"] / lora if lora else ""
            table(mine)
    save("peak_memory", rows)


if __name__ == "__main__":
    main()
