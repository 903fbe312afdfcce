"""Matrix completion on real ratings beside Surprise and implicit, on one split.

RMSE on a random fifth of a file of ratings (columns userId, movieId, rating), such as MovieLens `latest-small`; the
other packages take part where they are installed (scikit-surprise, implicit). Nothing is chosen on that fifth.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._harness import table
from eckart.recovery import MatrixCompletion
from evidence._record import Rows


def arguments(parser: argparse.ArgumentParser) -> None:
    """The ratings."""
    parser.add_argument("--data", type=Path, required=True, help="file of ratings, Parquet or CSV")


def run(options: argparse.Namespace) -> Rows:
    """Fit every model to the same four fifths."""
    import pandas as pd

    path = options.data
    ratings = (pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path))[
        ["userId", "movieId", "rating"]
    ]
    order = np.random.default_rng(0).permutation(len(ratings))
    test, train = ratings.iloc[order[: len(ratings) // 5]], ratings.iloc[order[len(ratings) // 5 :]]
    low, high = float(ratings.rating.min()), float(ratings.rating.max())
    rows = [*ours(train, test, low, high), *surprise(train, test), *implicit(train, test, low, high)]
    table(rows)
    return rows


def row(model: str, rmse: float, began: float) -> dict[str, Any]:
    return {"model": model, "rmse": rmse, "seconds": time.perf_counter() - began}


def ours(train: Any, test: Any, low: float, high: float) -> Rows:
    rows = []
    for name, options in {
        "mean and biases": {"n_components": 1, "reg": 1e9},
        "eckart, k = 20": {"n_components": 20},
        "eckart, k = 50, exact": {"n_components": 50, "solver": "cholesky"},
        "eckart, k = 50, CG 1 step": {"n_components": 50, "solver": "cg", "cg_steps": 1},
        "eckart, k = 50, CG 3 steps": {"n_components": 50, "solver": "cg", "cg_steps": 3},
    }.items():
        began = time.perf_counter()
        model = MatrixCompletion(clip=(low, high), random_state=0, **options).fit(train)
        rows.append(row(name, -model.score(test), began))
    return rows


def surprise(train: Any, test: Any) -> Rows:
    try:
        import surprise
    except ImportError:
        return []
    data = surprise.Dataset.load_from_df(train, surprise.Reader(rating_scale=(0.5, 5)))
    trainset, triples = data.build_full_trainset(), list(test.itertuples(index=False, name=None))
    rows = []
    for name, model in {
        "Surprise BaselineOnly": surprise.BaselineOnly(verbose=False),
        "Surprise SVD (100 factors)": surprise.SVD(random_state=0),
        "Surprise SVD++ (20 factors)": surprise.SVDpp(random_state=0),
    }.items():
        began = time.perf_counter()
        predictions = model.fit(trainset).test(triples)
        rows.append(row(name, float(np.sqrt(np.mean([(p.est - p.r_ui) ** 2 for p in predictions]))), began))
    return rows


def implicit(train: Any, test: Any, low: float, high: float) -> Rows:
    """implicit's ALS knows no missing entries: it fits the residuals of our biases, absent ones as zeros."""
    try:
        from implicit.als import AlternatingLeastSquares
    except ImportError:
        return []
    import scipy.sparse as sp

    base = MatrixCompletion(1, reg=1e9, random_state=0).fit(train)
    users, items = base._ids.find(0, train.userId), base._ids.find(1, train.movieId)
    rest = (train.rating - base.predict(train.userId, train.movieId)).to_numpy(np.float32)
    model = AlternatingLeastSquares(
        factors=20, regularization=15.0, random_state=0, iterations=15, num_threads=1
    )
    began = time.perf_counter()
    model.fit(sp.csr_matrix((rest, (users, items)), shape=base._shape), show_progress=False)
    known = test[test.movieId.isin(base.col_ids_) & test.userId.isin(base.row_ids_)]
    part = np.einsum(
        "ij,ij->i",
        model.user_factors[base._ids.find(0, known.userId)],
        model.item_factors[base._ids.find(1, known.movieId)],
    )
    predicted = base.predict(test.userId, test.movieId)
    predicted[np.isin(test.index, known.index)] += part
    rmse = float(np.sqrt(np.mean((np.clip(predicted, low, high) - test.rating.to_numpy()) ** 2)))
    return [row("implicit ALS on the residuals (20 factors)", rmse, began)]
