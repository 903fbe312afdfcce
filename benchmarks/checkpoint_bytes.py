"""Bytes on disk of a saved adapter, ours beside PEFT's at the same rank.

Run: python benchmarks/checkpoint_bytes.py
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

from _arms import ARMS, PAIRS
from _harness import MODELS, make_arm, save, table


def bytes_on_disk(model: str, arm: str) -> int:
    """Size of adapter_model.safetensors."""
    with tempfile.TemporaryDirectory() as directory:
        make_arm(model, ARMS[arm])["body"].save_pretrained(directory)
        return (Path(directory) / "adapter_model.safetensors").stat().st_size


def main() -> None:
    """Print and save one row for each model and arm."""
    warnings.filterwarnings("ignore")
    rows = []
    for model in MODELS:
        sizes = {arm: bytes_on_disk(model, arm) for arm in ARMS if ARMS[arm] is not None}
        for arm, size in sizes.items():
            rival = PAIRS.get(arm)
            rows.append(
                {"model": model, "arm": arm, "bytes": size, "x PEFT": size / sizes[rival] if rival else ""}
            )
    table(rows)
    save("checkpoint_bytes", rows)


if __name__ == "__main__":
    main()
