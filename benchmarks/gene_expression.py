"""Expression values with failed probes: how well what was hidden is found again, beside each gene's median.

    python benchmarks/gene_expression.py expression.npz … [--genes 600] [--splits 2]

Each file holds a matrix x (samples, genes), of which the logarithm is taken where all is positive. The genes of the
largest variance are taken; in each split a fifth of the entries is hidden, and a twentieth of the others is replaced by
values from anywhere in the table, as failed probes would give. Errors are root mean squares on what was hidden, as a
share of that of the medians. Rows go to benchmarks/results/gene_expression.json.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _harness import save, table

from eckart.recovery import MatrixCompletion, RobustLowRank

HIDDEN, FAILED = 0.2, 0.05
FILL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "median of the gene": lambda X: np.broadcast_to(np.nanmedian(X, 0), X.shape),
    "RobustLowRank()": lambda X: RobustLowRank(random_state=0).fit(X).matrix_,
    "MatrixCompletion(10)": lambda X: MatrixCompletion(10, random_state=0).fit(X).impute(X),
}


def measure(path: Path, genes: int, splits: int) -> list[dict[str, Any]]:
    """Rows of one file."""
    with np.load(path, allow_pickle=False) as held:
        whole = held["x"].astype(np.float64)
    whole = np.log2(whole) if (whole > 0).all() else whole
    whole = whole[:, np.sort(np.argsort(-whole.var(0), kind="stable")[:genes])]
    rows = []
    for failed in (0.0, FAILED):
        errors: dict[str, list[float]] = {name: [] for name in FILL}
        seconds: dict[str, list[float]] = {name: [] for name in FILL}
        for split in range(splits):
            rng = np.random.default_rng(split)
            hidden, wrong = rng.random(whole.shape) < HIDDEN, rng.random(whole.shape) < failed
            X = np.where(wrong, rng.choice(whole.ravel(), whole.shape), whole)
            X[hidden] = np.nan
            for name, fill in FILL.items():
                before = time.process_time()
                found = fill(X)
                seconds[name].append(time.process_time() - before)
                errors[name].append(float(np.sqrt(np.mean((found - whole)[hidden] ** 2))))
        base = np.mean(errors["median of the gene"])
        for name in FILL:
            of = {"data": path.stem, "samples": len(whole), "genes": whole.shape[1]}
            rows.append(
                of
                | {"failed probes": failed, "filled by": name, "error": float(np.mean(errors[name]) / base)}
                | {"processor seconds": float(np.mean(seconds[name]))}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="+", help=".npz files with a matrix x (samples, genes)")
    parser.add_argument("--genes", type=int, default=600)
    parser.add_argument("--splits", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = [row for path in arguments.data for row in measure(path, arguments.genes, arguments.splits)]
    table(rows)
    save("gene_expression", rows)


if __name__ == "__main__":
    main()
