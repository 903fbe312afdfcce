"""Matrix completion costs |Ω|·k an iteration: exponents in |Ω| over a 100-fold range and in k, up to 10⁷ ratings.

    python benchmarks/completion_scaling.py [--largest 10000000]

Times are of one thread's processor, so that a busy machine does not change them much; the exponent is that of a fit of
log seconds on log size.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from _fit import exponent

from eckart.recovery import MatrixCompletion

RESULTS = Path(__file__).parent / "results" / "completion_scaling.json"
RATINGS_OF_A_USER, USERS_OF_AN_ITEM = 100, 5


def ratings(count: int, rank: int = 10) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], tuple[int, int]]:
    """About ``count`` noisy entries of a matrix of low rank, 100 in a row and 500 in a column on average."""
    rng = np.random.default_rng(0)
    m, n = max(count // RATINGS_OF_A_USER, 2), max(count // (RATINGS_OF_A_USER * USERS_OF_AN_ITEM), 2)
    key = np.unique(rng.integers(0, m * n, count))
    rows, cols = key // n, key % n
    u, v = (rng.normal(size=(size, rank)).astype(np.float32) for size in (m, n))
    values = np.concatenate([np.einsum("ij,ij->i", u[i], v[j]) for i, j in _pieces(rows, cols)])
    return (rows, cols, values + 0.1 * rng.normal(size=len(values)).astype(np.float32)), (m, n)


def _pieces(rows: np.ndarray, cols: np.ndarray):
    parts = max(1, len(rows) // 2**20)
    return zip(np.array_split(rows, parts), np.array_split(cols, parts), strict=True)


def measure(data, shape, k: int, solver: str, iterations: int) -> tuple[float, float]:
    """Processor seconds of one iteration (the least of several), and the RMSE at the end."""
    marks: list[float] = []
    model = MatrixCompletion(
        k,
        solver=solver,
        cg_steps=3,
        reg=0.1,
        fit_bias=False,
        init="random",
        max_iter=iterations,
        tol=0.0,
        random_state=0,
        callback=lambda *_: marks.append(time.process_time()),
    ).fit(data, shape=shape)
    return float(np.diff(marks).min()), model.train_rmse_


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--largest", type=int, default=10_000_000, help="ratings of the largest problem")
    parser.add_argument("--rank", type=int, default=10)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sizes = [int(s) for s in np.geomspace(arguments.largest / 100, arguments.largest, 5)]
    report: dict = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "rank": arguments.rank,
        "seconds": {},
    }
    for solver in ("cg", "cholesky"):
        seconds, counts = [], []
        for size in sizes:
            data, shape = ratings(size)
            spent, rmse = measure(data, shape, arguments.rank, solver, 3)
            seconds.append(spent)
            counts.append(len(data[0]))
            print(
                f"{solver}: {len(data[0]):>11,} ratings: {spent:8.3f} s an iteration, RMSE {rmse:.3f}",
                flush=True,
            )
        report["seconds"][solver] = dict(zip(map(str, counts), seconds, strict=True))
        report[f"exponent in ratings, {solver}"] = exponent(counts, seconds)
    ranks, data_shape = (8, 16, 32, 64), ratings(sizes[1])
    for solver in ("cg", "cholesky"):
        seconds = [measure(*data_shape, k, solver, 3)[0] for k in ranks]
        report[f"exponent in k, {solver}"] = exponent(ranks, seconds)
    report["peak resident MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(report, indent=1))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
