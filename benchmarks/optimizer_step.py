"""What a step of the low-rank optimisers costs, against the rank, against a decomposition, against AdamW.

    python benchmarks/optimizer_step.py [--shapes 768x768,3072x768,768x3072] [--ranks 16,32,64,128] [--seconds 6]

Each arm updates one matrix with one gradient, the arms of a shape taking turns within one process; medians of the time
of one thread. GaLore with
a new subspace at every step is the projection by singular value decomposition. State bytes are counted in what the
optimiser holds after a step, beside the formula of docs/optim/dct-lowrank.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _harness import interleave, save, table
from torch import Tensor
from torch.optim import Optimizer

from eckart.optim import DCTAdamW, GaLore, Trion

BASELINES: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "torch AdamW": lambda params: torch.optim.AdamW(params, lr=1e-3),
    "torch Muon": lambda params: torch.optim.Muon(params, lr=1e-3),
}
LOW_RANK: dict[str, Callable[[list[Tensor], int], Optimizer]] = {
    "DCTAdamW": lambda params, r: DCTAdamW(params, rank=r),
    "DCTAdamW, product": lambda params, r: DCTAdamW(params, rank=r, transform="matmul"),
    "DCTAdamW, int8 feedback": lambda params, r: DCTAdamW(params, rank=r, error_feedback="int8"),
    "Trion": lambda params, r: Trion(params, rank=r),
    "GaLore, every step": lambda params, r: GaLore(params, rank=r, update_gap=1),
}


def formula(name: str, rows: int, columns: int, r: int) -> int | None:
    """Bytes of state in float32, with the step counter."""
    moments = 4 * 2 * max(rows, columns) * r
    return {
        "DCTAdamW": moments + 4 * r + 4,
        "DCTAdamW, product": moments + 4 * r + 4,
        "DCTAdamW, int8 feedback": moments + 4 * r + 4 + rows * columns + 4 * 2 * rows,
        "Trion": 4 * rows * columns + 4 * r + 4,
        "GaLore, every step": moments + 4 * min(rows, columns) * r + 4,
        "torch AdamW": 4 * 2 * rows * columns + 4,
        "torch Muon": 4 * rows * columns,
    }[name]


def measure(rows: int, columns: int, ranks: list[int], seconds: float) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    gradient = torch.randn(rows, columns)
    arms: dict[tuple[str, int], Optimizer] = {}
    steps: dict[str, Callable[[], None]] = {}
    for name, r, make in [
        *((name, 0, make) for name, make in BASELINES.items()),
        *((name, r, partial(make, r=r)) for name, make in LOW_RANK.items() for r in ranks),
    ]:
        p = torch.randn(rows, columns, requires_grad=True)
        p.grad = gradient.clone()
        arms[name, r] = make([p])
        steps[f"{name}/{r}"] = arms[name, r].step
    times = interleave(steps, seconds, clock=time.thread_time)
    decomposed = max(times[f"GaLore, every step/{r}"] for r in ranks)
    found = []
    for (name, r), optimizer in arms.items():
        held = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        same = [times[f"{name}/{s}"] for s in (ranks if r else [0])]
        found.append(
            {
                "shape": f"{rows} x {columns}",
                "arm": name,
                "rank": r or min(rows, columns),
                "ms": 1e3 * times[f"{name}/{r}"],
                "x least rank": times[f"{name}/{r}"] / same[0],
                "x AdamW": times[f"{name}/{r}"] / times["torch AdamW/0"],
                "SVD / this": decomposed / times[f"{name}/{r}"],
                "state bytes": sum(t.numel() * t.element_size() for t in held),
                "formula": formula(name, rows, columns, r),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default="768x768,3072x768,768x3072")
    parser.add_argument("--ranks", default="16,32,64,128")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each shape, at least five rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ranks = [int(r) for r in options.ranks.split(",")]
    found: list[dict[str, Any]] = []
    for shape in options.shapes.split(","):
        rows, columns = (int(n) for n in shape.split("x"))
        found += measure(rows, columns, ranks, options.seconds)
        print(f"{shape}: done", flush=True)
    table(found)
    save("optimizer_step", found)


if __name__ == "__main__":
    main()
