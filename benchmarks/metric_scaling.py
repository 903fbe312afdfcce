"""The matrix nuclear norm costs O(n d), what it replaces O(d³): times, ratios and exponents at hidden sizes 768 … 4096.

    python benchmarks/metric_scaling.py [--sizes 768,1024,1536,2048,3072,4096] [--seconds 8]

One text of n tokens of width d, with n = d (the paper's O(n²) against O(n³)) and with n = 256, in four arms:

    column norms     matrix_nuclear_norm, the paper's score
    entropy, Gram    matrix_entropy: eigenvalues of the smaller Gram matrix, float64
    nuclear norm     singular values of Z, float32
    entropy, SVD     the baseline of the paper's timings: a general SVD of the d×d covariance, float32

The arms take turns; each runs until its time is spent, so that the slowest run once at the largest sizes: the rows say
how often. The exponent is the slope of log time on log d. One thread, and its own clock. About five minutes.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _figure import line_chart
from _fit import exponent
from _harness import save, table
from torch import Tensor

from eckart.linalg.spectrum import singular_values
from eckart.metrics import matrix_entropy, matrix_nuclear_norm, normalised_states

TOKENS = 256
MOST_RUNS = 30


def exact_nuclear_norm(hidden: Tensor) -> Tensor:
    return singular_values(normalised_states(hidden)).sum() / len(hidden)


def entropy_by_svd(hidden: Tensor) -> Tensor:
    """Without regard to the symmetry of the covariance, or to its rank where n < d."""
    z = normalised_states(hidden)
    values = torch.linalg.svd(z.mT @ z / len(hidden))[1]
    return torch.special.entr(values / values.sum()).sum() / math.log(hidden.shape[1])


ARMS: dict[str, Callable[[Tensor], Tensor]] = {
    "column norms": matrix_nuclear_norm,
    "entropy, Gram": matrix_entropy,
    "nuclear norm": exact_nuclear_norm,
    "entropy, SVD": entropy_by_svd,
}
BASE = next(iter(ARMS))


def take_turns(hidden: Tensor, seconds: float) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every run of each arm, at least one and then until its time is spent; and what each arm says."""
    samples: dict[str, list[float]] = {name: [] for name in ARMS}
    values: dict[str, float] = {}
    for _ in range(MOST_RUNS):
        for name, arm in ARMS.items():
            if sum(samples[name]) < seconds:
                before = time.thread_time()
                values[name] = float(arm(hidden))
                samples[name].append(time.thread_time() - before)
    return samples, values


def measure(sizes: list[int], tokens: int | None, seconds: float) -> list[dict[str, Any]]:
    """Rows of all arms at all widths; as many tokens as the width where ``tokens`` is None."""
    rows = []
    for d in sizes:
        n = tokens or d
        hidden = torch.randn(n, d, generator=torch.Generator().manual_seed(d))
        samples, values = take_turns(hidden, seconds)
        medians = {name: statistics.median(runs) for name, runs in samples.items()}
        for name, median in medians.items():
            row = {"case": f"n = {tokens or 'd'}", "width": d, "tokens": n, "arm": name, "ms": median * 1000}
            ratio = {"x column norms": median / medians[BASE]}
            rows.append(row | ratio | {"runs": len(samples[name]), "value": values[name]})
            print(
                f"{row['case']}, d = {d}, {name}: {row['ms']:.2f} ms ({len(samples[name])} runs)", flush=True
            )
    for name in ARMS:
        mine = [row for row in rows if row["arm"] == name]
        slope = exponent(sizes, [row["ms"] for row in mine]) if len(sizes) > 1 else math.nan
        for row in mine:
            row["exponent in d"] = slope
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="768,1024,1536,2048,3072,4096", help="hidden sizes")
    parser.add_argument("--seconds", type=float, default=8.0, help="time of each arm at each size")
    arguments = parser.parse_args()
    sizes = sorted(int(size) for size in arguments.sizes.split(","))
    torch.set_num_threads(1)
    take_turns(torch.randn(64, 64), 0.1)
    rows = [row for tokens in (None, TOKENS) for row in measure(sizes, tokens, arguments.seconds)]
    table(rows)
    save("metric_scaling", rows)
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        series.setdefault(f"{row['arm']}, {row['case']}", []).append((row["width"], row["ms"] / 1000))
    line_chart("metric-scaling", "Time of one text", "width d", "seconds", series, log_x=True)


if __name__ == "__main__":
    main()
