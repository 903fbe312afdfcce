"""What one more layer adds to the peak memory of a forward and backward pass: memory outside the layer being computed.

Counts the bytes of all tensors alive, so the numbers are the same on every machine.

Run: python benchmarks/memory_by_depth.py
"""

from __future__ import annotations

import warnings

import torch
from _arms import ARMS
from _harness import Stack, save, table

from eckart.tasks.instruments import PeakMemory

DEPTHS, TOKENS, WIDTH = (8, 16), 1024, 1024


def peak(arm: str, depth: int) -> float:
    """Peak MiB of all tensors alive."""
    wrap = ARMS[arm]
    assert wrap is not None
    torch.manual_seed(0)
    model = wrap(Stack(WIDTH, depth).requires_grad_(False), r"layers\.\d+")
    x = torch.randn(TOKENS, WIDTH, requires_grad=True)
    with PeakMemory([*model.parameters(), *model.buffers(), x]) as memory:
        model(x).square().mean().backward()
    return memory.peak / 2**20


def main() -> None:
    """Print and save one row for each arm."""
    warnings.filterwarnings("ignore")
    rows = []
    for arm in ("lora", "bone", "bat", "snell", "peft lora", "peft bat"):
        shallow, deep = (peak(arm, depth) for depth in DEPTHS)
        rows.append(
            {"model": f"d{WIDTH}", "arm": arm, "MiB a layer": (deep - shallow) / (DEPTHS[1] - DEPTHS[0])}
        )
    for row in rows:
        row["x lora"] = row["MiB a layer"] / rows[0]["MiB a layer"]
    table(rows)
    save("memory_by_depth", rows)


if __name__ == "__main__":
    main()
