"""What an adapter costs before the first step: seconds to adapt one square layer, and the linear layers of a 7B model.

Run: OMP_NUM_THREADS=1 python benchmarks/build_times.py

One thread, and its own clock. SVFit and LoLDU have full rank, the others their own defaults. The last column is no
measurement: what a layer of width 2,048 takes, carried to the 224 layers of Llama-2-7B (128 of 4,096 × 4,096, 96 of
11,008 × 4,096) by the cube of the small side times the large one's share of it where the time has grown with the cube,
else by the number of weights.
"""

from __future__ import annotations

import math
import time
import warnings

import torch
from _harness import Stack, save, table

import eckart

WIDTHS = (512, 1024, 2048)
LAYERS_7B = {(4096, 4096): 128, (11_008, 4096): 96}
CUBIC = 2.5
"""From this power of the width on, the time is taken to grow with the cube."""


def seconds(slug: str, width: int) -> float:
    """To adapt one layer."""
    options = {"r": width} if slug in ("svfit", "loldu") else {}
    model = Stack(width, 1)
    before = time.thread_time()
    eckart.adapt(model, slug, target_modules=r"layers\.\d+", **options)
    return time.thread_time() - before


def of_7b(at_2048: float, power: float) -> float:
    """Hours of one thread."""
    total = 0.0
    for (large, small), count in LAYERS_7B.items():
        shape = (small / 2048) ** 3 * large / small if power > CUBIC else small * large / 2048**2
        total += count * at_2048 * shape
    return total / 3600


def main() -> None:
    """Print and save one row for each method."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    rows = []
    for slug in (method.slug for method in eckart.methods("adapters") if method.slug != "dept"):
        seconds(slug, 64)
        times = [min(seconds(slug, width) for _ in range(3)) for width in WIDTHS]
        power = math.log2(times[2] / times[1])
        found = {f"s at {width}": spent for width, spent in zip(WIDTHS, times, strict=True)}
        rows.append({"arm": slug, **found, "power": power, "7B hours, estimated": of_7b(times[2], power)})
        print(rows[-1], flush=True)
    table(rows)
    save("build_times", rows)


if __name__ == "__main__":
    main()
