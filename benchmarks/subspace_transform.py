"""Time of one Fastfood transform and its backward pass against D log₂ D, the work its equation asks for.

Run: python benchmarks/subspace_transform.py [--seconds 2]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from _harness import interleave, save, table

from eckart.adapters.intrinsic_dimension import Fastfood

D = [2**k for k in (14, 16, 18, 20, 22)]
DIMENSIONS = 1000


def make_step(size: int) -> Callable[[], None]:
    """P θ and Pᵀ g."""
    projection = Fastfood(size, DIMENSIONS, 0, torch.float32, keep=False)
    theta, cotangent = torch.randn(DIMENSIONS, requires_grad=True), torch.randn(size)
    return lambda: projection(theta).backward(cotangent)


def main() -> None:
    """Print and save one row for each D."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    seconds = interleave({str(size): make_step(size) for size in D}, parser.parse_args().seconds)
    unit = seconds[str(D[0])] / (D[0] * math.log2(D[0]))
    rows = [
        {
            "D": size,
            "d": DIMENSIONS,
            "ms": 1e3 * seconds[str(size)],
            "x D log D": seconds[str(size)] / (unit * size * math.log2(size)),
        }
        for size in D
    ]
    table(rows)
    save("subspace_transform", rows)


if __name__ == "__main__":
    main()
