"""How well implicit feedback is ranked: nDCG, recall and MAP at 10 on real ratings, beside popularity and `implicit`.

    python benchmarks/ranking.py ratings.parquet [--splits 4]

A random fifth is held out in each split; every model has 20 factors and α = 1, and leaves out what it was trained on.
Rows go to benchmarks/results/ranking.json; those of implicit only where it is installed.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from eckart.recovery import MatrixCompletion, ranking_scores

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "ranking.json"
Ranker = Callable[[sp.csr_matrix], np.ndarray]
K = 10


def rankers() -> Iterator[tuple[str, Ranker]]:
    """Name and (training matrix) -> the ten best unseen items of every user."""

    def popularity(train: sp.csr_matrix) -> np.ndarray:
        scores = np.tile((train > 0).sum(0), (train.shape[0], 1)).astype(float)
        scores[train.nonzero()] = -1
        return np.argsort(-scores, 1, kind="stable")[:, :K]

    yield "popularity", popularity

    def ours(train: sp.csr_matrix) -> np.ndarray:
        model = MatrixCompletion(20, implicit=True, random_state=0).fit(train)
        return model.recommend(np.arange(train.shape[0]), K, exclude=train)[0]

    yield "eckart MatrixCompletion, its defaults", ours
    try:
        from implicit.als import AlternatingLeastSquares

        def theirs(train: sp.csr_matrix, reg: float = 0.01) -> np.ndarray:
            model = AlternatingLeastSquares(
                20, alpha=1.0, regularization=reg, iterations=15, random_state=0, num_threads=1
            )
            model.fit(train, show_progress=False)
            return model.recommend(np.arange(train.shape[0]), train, N=K)[0]

        yield "implicit 0.7.3 ALS, its defaults", theirs
        yield "implicit 0.7.3 ALS, regularization = 10", lambda train: theirs(train, 10.0)
    except ImportError:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="ratings with columns userId, movieId, rating")
    parser.add_argument("--splits", type=int, default=4)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    import pandas as pd

    table = pd.read_parquet(arguments.data)
    users, items = (table[name].astype("category").cat.codes.to_numpy() for name in ("userId", "movieId"))
    shape = int(users.max()) + 1, int(items.max()) + 1
    rows = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    given = table.rating.to_numpy(np.float32)
    for kind, values in (
        ("ratings as counts", given),
        ("clicks", np.ones(len(table), np.float32)),
        ("ratings of 4 and more as counts", np.where(given >= 4, given, 0)),
    ):
        for name, rank in rankers():
            scores = []
            for split in range(arguments.splits):
                held = np.random.default_rng(split).random(len(table)) < 0.2
                train, test = (
                    sp.csr_matrix((values[part], (users[part], items[part])), shape=shape)
                    for part in (~held & (values > 0), held & (values > 0))
                )
                scores.append(ranking_scores(rank(train), test))
            rows.setdefault(kind, {})[name] = {m: [s[m] for s in scores] for m in ("ndcg", "recall", "map")}
            print(f"{kind}, {name}: nDCG@{K} {np.mean(rows[kind][name]['ndcg']):.4f}", flush=True)
    RESULTS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
