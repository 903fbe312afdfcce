"""Bytes on disk of a saved adapter, ours beside PEFT's at the same rank.

PEFT stores RandLoRA's frozen bases once for each layer. On square layers of width m its file is then about 1 + r times
ours, whatever m is; where layers differ in size, as in Llama's query and value projections, more.

Run: python benchmarks/checkpoint_bytes.py
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _arms import ARMS, PAIRS
from _harness import MODELS, save, table
from torch import nn


def llama_block() -> nn.Module:
    """The query and value projections of one block of Llama-3.2-3B."""
    return nn.ModuleDict(
        {"q_proj": nn.Linear(3072, 3072, bias=False), "v_proj": nn.Linear(3072, 1024, bias=False)}
    )


def bytes_on_disk(make: Callable[[], nn.Module], targets: Any, arm: str) -> int:
    """Size of adapter_model.safetensors."""
    wrap = ARMS[arm]
    assert wrap is not None
    with tempfile.TemporaryDirectory() as directory:
        wrap(make(), targets).save_pretrained(directory)
        return (Path(directory) / "adapter_model.safetensors").stat().st_size


def main() -> None:
    """Print and save one row for each model and arm."""
    warnings.filterwarnings("ignore")
    models = {name: (make, targets) for name, (make, targets, _) in MODELS.items()}
    models["llama-3.2-3b q, v"] = llama_block, ["q_proj", "v_proj"]
    rows = []
    for name, (make, targets) in models.items():
        arms = [arm for arm in ARMS if ARMS[arm] is not None]
        sizes = {arm: bytes_on_disk(make, targets, arm) for arm in arms}
        for arm, size in sizes.items():
            rival = PAIRS.get(arm)
            share = size / sizes[rival] if rival else ""
            rows.append({"model": name, "arm": arm, "bytes": size, "x PEFT": share})
    table(rows)
    save("checkpoint_bytes", rows)


if __name__ == "__main__":
    main()
