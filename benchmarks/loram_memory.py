"""Peak memory of LoRA training on SmolLM2-135M pruned at several ratios; every arm loads its small model in a fresh
process, which never sees the large one.

Run: python benchmarks/loram_memory.py [--ratios 0 0.3 0.6 0.85] [--tokens 128]
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _harness import held_mib, save, table
from transformers import AutoModelForCausalLM

from eckart.adapters import adapt
from eckart.compression import load_pruned, loram, save_pruned
from eckart.jobs.adapt.loram import quantise
from eckart.tasks.pretrained import find_model

STEPS = 2


def worker(place: str, tokens: int, int8: bool) -> dict[str, float]:
    """Load, adapt, train a few steps."""
    before = held_mib("VmRSS")
    small, _ = load_pruned(place)
    base = sum(p.numel() * p.element_size() for p in small.parameters()) / 2**20
    if int8:
        quantise(small)
    model = adapt(small, "lora", r=8).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets the mark to what is held now
    ids = torch.randint(1000, (1, tokens), generator=torch.Generator().manual_seed(0))
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return {"base MiB": base, "peak MiB": held_mib("VmHWM") - before}


def main() -> None:
    """Print and save one row for each ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.0, 0.3, 0.6, 0.85])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--worker", nargs=2, metavar=("DIR", "INT8"))
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(worker(given.worker[0], given.tokens, given.worker[1] == "int8")))
        return
    directory = find_model("smollm2").directory
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for ratio in given.ratios:
            model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
            pruning = loram.choose(model, ratio)
            place = Path(temporary, "small")
            save_pruned(loram.prune_model(model, pruning), pruning, place, overwrite=True)
            del model
            for kind in ("float32", "int8") if ratio in (0.0, 0.6) else ("float32",):
                command = [sys.executable, __file__, "--tokens", str(given.tokens)]
                command += ["--worker", str(place), kind]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found = json.loads(output.splitlines()[-1])
                rows.append({"ratio": ratio, "base": kind, "tokens": given.tokens, **found})
                rows[-1]["x unpruned"] = found["peak MiB"] / rows[0]["peak MiB"]
                save("loram_memory", rows)
    table(rows)


if __name__ == "__main__":
    main()
