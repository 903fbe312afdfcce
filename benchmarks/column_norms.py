"""matrix_nuclear_norm beside the same in the operations of its authors' code, which has no checks and no padding.

    python benchmarks/column_norms.py [--runs 100]

One text of n tokens of width d, one thread, the two in turns; times are of the thread's processor, so that a busy
machine changes them little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from _harness import save, table
from torch import Tensor

from eckart.metrics import matrix_nuclear_norm

SIZES = ((64, 384), (256, 768), (256, 1536), (1024, 1024), (2048, 1024), (2048, 2048), (2048, 4096))


def plain_form(hidden: Tensor) -> Tensor:
    x = hidden - hidden.mean(0)
    z = x / torch.norm(x, dim=1, keepdim=True)
    columns = torch.sqrt(torch.sum(z**2, dim=0))
    return torch.sort(columns, descending=True).values[: min(hidden.shape)].sum() / len(hidden)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arms: tuple[Callable[[Tensor], Tensor], ...] = (matrix_nuclear_norm, plain_form)
    rows = []
    for n, d in SIZES:
        hidden = torch.randn(n, d, generator=torch.Generator().manual_seed(d))
        values = [float(arm(hidden)) for arm in arms]
        spent: list[list[float]] = [[], []]
        for _ in range(arguments.runs):
            for arm, times in zip(arms, spent, strict=True):
                before = time.thread_time()
                arm(hidden)
                times.append(time.thread_time() - before)
        ours, plain = (statistics.median(times) * 1000 for times in spent)
        row = {"tokens": n, "width": d, "ms": ours, "plain form, ms": plain, "x plain form": ours / plain}
        rows.append(row | {"relative difference": abs(values[0] / values[1] - 1)})
    table(rows)
    save("column_norms", rows)


if __name__ == "__main__":
    main()
