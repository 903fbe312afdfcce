r"""Matrix completion of up to ten million ratings beside cmfrec and implicit: error, time and memory.

    python benchmarks/completion_peers.py [--draws 3000000 10800000] [--arms eckart cmfrec\ 1 …]

The ratings are made here: 3.5 + b_i + b'_j + u_i · v_j + .5 ε of rank 10, users and items of very unequal activity; a
tenth is held out, so that .5 is the least error there is. Every arm has 10 factors, one thread and its own process.
cmfrec has three λ, implicit's error is not one of ratings. Memory is the peak of the process above what it held before
the fit, the ratings among it (Linux only). Arms that are not installed are left out. Rows go to
benchmarks/results/completion_peers.json after every arm, in the place of those of the same arm and size.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import itertools
import json
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import RESULTS, save, table

from eckart.recovery import MatrixCompletion

RANK, NOISE = 10, 0.5
Triplets = tuple[np.ndarray, np.ndarray, np.ndarray]
ARMS = {
    "eckart": None,
    "cmfrec 1": "cmfrec",
    "cmfrec 3": "cmfrec",
    "cmfrec 10": "cmfrec",
    "implicit": "implicit",
}


def ratings(draws: int) -> tuple[Triplets, Triplets, tuple[int, int]]:
    """What is seen, what is held out, and the shape."""
    rng = np.random.default_rng(0)
    m, n = max(draws // 150, 50), max(draws // 600, 20)
    u, v = (rng.normal(size=(size, RANK)).astype(np.float32) / RANK**0.25 for size in (m, n))
    a, b = (rng.normal(0, 0.4, size).astype(np.float32) for size in (m, n))
    share = 1 / np.arange(1, n + 1) ** 0.7
    cols = rng.choice(n, draws, p=share / share.sum())
    rows = np.minimum((rng.random(draws) ** 1.5 * m).astype(np.int64), m - 1)
    key = np.unique(rows * n + cols)
    rows, cols = key // n, key % n
    values = NOISE * rng.normal(size=len(key)).astype(np.float32) + 3.5 + a[rows] + b[cols]
    for part in np.array_split(np.arange(len(key)), max(1, len(key) // 2**20)):
        values[part] += np.einsum("ij,ij->i", u[rows[part]], v[cols[part]])
    held = rng.random(len(key)) < 0.1
    seen, kept = ((rows[part], cols[part], values[part].astype(np.float32)) for part in (~held, held))
    return seen, kept, (m, n)


def fit(arm: str, seen: Triplets, held: Triplets, shape: tuple[int, int]) -> np.ndarray | None:
    """Predictions of what is held out."""
    if arm == "eckart":
        model = MatrixCompletion(RANK, random_state=0, dtype="float32").fit(seen, shape=shape)
        return model.predict(held[0], held[1])
    if arm == "implicit":
        import scipy.sparse as sp
        from implicit.als import AlternatingLeastSquares

        counts = sp.csr_matrix((seen[2], seen[:2]), shape=shape)
        AlternatingLeastSquares(RANK, iterations=15, num_threads=1, random_state=0).fit(
            counts, show_progress=False
        )
        return None
    import pandas as pd
    from cmfrec import CMF

    frame = pd.DataFrame(dict(zip(("UserId", "ItemId", "Rating"), seen, strict=True)))
    model = CMF(k=RANK, lambda_=float(arm.split()[1]), nthreads=1, verbose=False, use_float=True).fit(frame)
    return model.predict(held[0], held[1])


def measure(arm: str, draws: int) -> dict[str, Any]:
    """One arm, in this process."""
    torch.set_num_threads(1)
    seen, held, shape = ratings(draws)
    if arm != "eckart":
        importlib.import_module(ARMS[arm] or "")
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(
        0
    )  # what the making of the ratings left is not there to be used again
    began = resident()
    with Peak() as peak:
        before = time.process_time()
        found = fit(arm, seen, held, shape)
        spent = time.process_time() - before
    error = None if found is None else float(np.sqrt(np.nanmean((found - held[2]) ** 2)))
    return {
        "arm": arm,
        "ratings": len(seen[2]) + len(held[2]),
        "held-out RMSE": error,
        "processor seconds": spent,
        "MiB": peak.most - began,
    }


def resident() -> float:
    """What the process holds, in memory or swapped out, in MiB."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "VmSwap"))) / 1024


class Peak:
    """The most that the process holds, looked at every hundredth of a second."""

    def __enter__(self) -> Peak:
        self.most, self.over = resident(), threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self) -> None:
        while not self.over.wait(0.01):
            self.most = max(self.most, resident())

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--draws",
        type=int,
        nargs="+",
        default=[3_000_000, 10_800_000],
        help="entries drawn, some of them twice",
    )
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=list(ARMS), help="these alone")
    parser.add_argument("--arm", choices=ARMS, help="one arm in this process, its row as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.arm:
        print(json.dumps(measure(arguments.arm, arguments.draws[0])))
        return
    path = RESULTS / "completion_peers.json"
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []
    for draws, arm in itertools.product(arguments.draws, arguments.arms):
        package = ARMS[arm]
        if package and importlib.util.find_spec(package) is None:
            continue
        command = [sys.executable, __file__, "--draws", str(draws), "--arm", arm]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows = [old for old in rows if (old["ratings"], old["arm"]) != (row["ratings"], row["arm"])] + [row]
        save("completion_peers", sorted(rows, key=lambda r: (r["ratings"], list(ARMS).index(r["arm"]))))
    table(rows)


if __name__ == "__main__":
    main()
