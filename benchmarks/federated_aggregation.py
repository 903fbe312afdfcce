"""Aggregating at the server: linear in the clients, memory that does not grow with them, against the dense form.

    python benchmarks/federated_aggregation.py [--largest 1000] [--width 1024]

Times are of one thread's processor. Memory is that of all tensors alive at once, one client's factors
among them. The exponents are those of fits of log seconds on log size.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _fit import exponent

from eckart.federated import LayerSum, make_strategy
from eckart.files import atomic_write
from eckart.tasks.instruments import PeakMemory

RESULTS = Path(__file__).parent / "results" / "federated_aggregation.json"
STRATEGIES = ("fedit", "lora-fair", "flexlora", "fedex-lora", "flora-stacking")


def updates(count: int, width: int, r: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One client's factors after another, drawn when they are asked for."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.randn(r, width, generator=generator), torch.randn(width, r, generator=generator)


def seconds(slug: str, count: int, width: int, r: int) -> tuple[float, float]:
    """Processor seconds of folding in, and of the end of the round."""
    strategy = make_strategy(slug)
    sums, folding = LayerSum(strategy.stacks), 0.0
    for a, b in updates(count, width, r):
        mark = time.process_time()
        sums.add(a, b, 1.0, 2.0)
        folding += time.process_time() - mark
    mark = time.process_time()
    strategy.finish(sums)
    return folding, time.process_time() - mark


def dense_seconds(count: int, width: int, r: int) -> float:
    """The ridge by way of the matrix ΔW, as it is usually written."""
    total, mean_a, mean_b = torch.zeros(width, width), torch.zeros(r, width), torch.zeros(width, r)
    spent = 0.0
    for a, b in updates(count, width, r):
        mark = time.process_time()
        total += b @ a / count
        mean_a += a / count
        mean_b += b / count
        spent += time.process_time() - mark
    mark = time.process_time()
    gram = mean_a @ mean_a.mT
    torch.linalg.solve(
        gram + 0.01 * gram.trace() / r * torch.eye(r), ((total - mean_b @ mean_a) @ mean_a.mT).mT
    )
    return spent + time.process_time() - mark


def peak(slug: str, count: int, width: int, r: int) -> float:
    """MiB of all tensors alive at once, at most."""
    strategy = make_strategy(slug)
    with PeakMemory([]) as memory:
        sums = LayerSum(strategy.stacks)
        for a, b in updates(count, width, r):
            sums.add(a, b, 1.0, 2.0)
        strategy.finish(sums)
    return float(memory.peak) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--largest", type=int, default=1000, help="clients")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    width, r = arguments.width, arguments.rank
    counts = [n for n in (10, 30, 100, 300, 1000, 3000) if n <= arguments.largest]
    rows: list[dict[str, Any]] = []
    for slug in STRATEGIES:
        for count in counts:
            if slug == "flora-stacking" and count > 300:
                continue  # it keeps every client's factors
            folding, end = min(seconds(slug, count, width, r) for _ in range(3))
            rows.append(
                {
                    "strategy": slug,
                    "clients": count,
                    "fold": folding,
                    "finish": end,
                    "peak MiB": peak(slug, count, width, r),
                }
            )
            print(
                f"{slug:15} {count:5} clients: {folding:.3f} s, then {end:.3f} s, {rows[-1]['peak MiB']:.1f} MiB",
                flush=True,
            )
    fits: dict[str, float] = {}
    for slug in STRATEGIES:
        found = [row for row in rows if row["strategy"] == slug and row["clients"] >= 100]
        if len(found) > 1:
            fits[f"{slug}: exponent in the clients"] = exponent(
                [row["clients"] for row in found], [row["fold"] for row in found]
            )
    widths = [2048, 4096, 8192, 16384]
    stacked = [min(sum(seconds("lora-fair", 6, w, r)) for _ in range(5)) for w in widths]
    fits["lora-fair, 6 clients: exponent in the width"] = exponent(widths, stacked)
    ranks = [16, 32, 64, 128]
    by_rank = [min(sum(seconds("lora-fair", 6, 8192, k)) for _ in range(5)) for k in ranks]
    fits["lora-fair, 6 clients: exponent in the rank"] = exponent(ranks, by_rank)
    ratios = {
        str(w): min(dense_seconds(6, w, r) for _ in range(3))
        / min(sum(seconds("lora-fair", 6, w, r)) for _ in range(3))
        for w in (256, 512, 1024, 2048, 4096)
    }
    for name, value in fits.items():
        print(f"{name}: {value:.2f}")
    print(
        "the dense form takes this many times as long, 6 clients:",
        {w: round(x, 2) for w, x in ratios.items()},
    )
    report = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "width": width,
        "rank": r,
        "rows": rows,
        "exponents": fits,
        "dense over stacked, 6 clients, by width": ratios,
    }
    with atomic_write(RESULTS) as file:
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
