"""What an adapter costs before the first step: seconds to adapt one square layer, and the linear layers of a 7B model.

Run: OMP_NUM_THREADS=1 python benchmarks/build_times.py

One thread, and its own clock; every method with its own defaults, SVFit and LoLDU also with full rank. "again" is a
second adapter on the same weight where the first one's decomposition is kept, as in a comparison. The last column is no
measurement: what a layer of width 2,048 takes, carried to the 224 layers of Llama-2-7B (128 of 4,096 × 4,096, 96
of 11,008 × 4,096) by the square of the small side times the large one where a method decomposes the weight, else by the
number of weights.
"""

from __future__ import annotations

import time
import warnings
from contextlib import nullcontext

import torch
from _harness import Stack, save, table

import eckart
from eckart.adapters._kept import Kept

WIDTHS = (512, 1024, 2048)
LAYERS_7B = {(4096, 4096): 128, (11_008, 4096): 96}
DECOMPOSE = ("svfit", "loldu", "salt")
FULL = ", full rank"


def seconds(arm: str, width: int, kept: Kept | None = None) -> float:
    """To adapt one layer, with what is kept in use where it is given."""
    slug, full, _ = arm.partition(FULL)
    options = {"r": width} if full else {}
    torch.manual_seed(0)
    model = Stack(width, 1)
    with nullcontext() if kept is None else kept.in_use():
        before = time.thread_time()
        eckart.adapt(model, slug, target_modules=r"layers\.\d+", **options)
        return time.thread_time() - before


def of_7b(arm: str, at_2048: float) -> float:
    """Minutes of one thread."""
    power = 2 if arm.startswith(DECOMPOSE) else 1
    each = ((small / 2048) ** power * large / 2048 * count for (large, small), count in LAYERS_7B.items())
    return at_2048 * sum(each) / 60


def main() -> None:
    """Print and save one row for each method."""
    warnings.filterwarnings("ignore")
    rows = []
    methods = [method.slug for method in eckart.methods("adapters") if method.slug != "dept"]
    for arm in (*methods, *(slug + FULL for slug in ("svfit", "loldu"))):
        seconds(arm, 64)
        times = [min(seconds(arm, width) for _ in range(3)) for width in WIDTHS]
        found = {f"s at {width}": spent for width, spent in zip(WIDTHS, times, strict=True)}
        kept = Kept()
        again = min([seconds(arm, WIDTHS[-1], kept) for _ in range(4)][1:])
        found[f"again, {WIDTHS[-1]}"] = again
        rows.append({"arm": arm, **found, "7B minutes, estimated": of_7b(arm, times[-1])})
    table(rows)
    save("build_times", rows)


if __name__ == "__main__":
    main()
