"""The theorems behind the four recovery methods as figures and fitted numbers.

    python benchmarks/evidence_recovery.py [--only subgm,…] [--data ratings.parquet] [--output docs/evidence/figures]

Writes one SVG for each claim and prints, and keeps in benchmarks/results/evidence_recovery.json, the number that was
fitted to it. ``--data`` is a file of real ratings (columns userId, movieId, rating), such as MovieLens: its tables come
beside other packages where they are installed (implicit, scikit-surprise).
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _figure import line_chart
from _fit import exponent

from eckart.recovery import IdentityOperator, MatrixCompletion, MatrixSensingGD, RobustLowRank, StreamingPCA

ROOT = Path(__file__).resolve().parent.parent
Numbers = dict[str, Any]


def low_rank(m: int, n: int, sigma: np.ndarray, seed: int = 0, symmetric: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(size, len(sigma))))[0] for size in (m, n))
    return (u * sigma) @ (u if symmetric else v).T


def thin(errors: np.ndarray, points: int = 200) -> list[tuple[float, float]]:
    index = np.unique(np.geomspace(1, len(errors) - 1, points).astype(int))
    return [(int(t), float(errors[t])) for t in index if errors[t] > 1e-28]


def sensing_course(target: np.ndarray, k: int, steps: int, **options: Any) -> tuple[np.ndarray, int | None]:
    """Squared errors of a run that sees the whole matrix, and the step of its re-factoring."""
    errors: list[float] = []
    fitted = MatrixSensingGD(
        k,
        eta=0.1,
        max_iter=steps,
        tol=0.0,
        random_state=1,
        callback=lambda t, i: errors.append(
            float(np.square((i["left"] @ i["right"].mT).numpy() - target).sum())
        ),
        **options,
    ).fit(IdentityOperator(target.shape), target.ravel())
    return np.array(errors), fitted.switch_iter_


def matrix_sensing_gd(output: Path, _: argparse.Namespace) -> Numbers:
    n, r = 50, 3
    flat = low_rank(n, n, np.ones(r), symmetric=True)
    runs = {
        f"symmetric, k = {k}": sensing_course(
            flat, k, 20_000 if k > r else 1_000, parametrization="symmetric", alpha=0.1
        )[0]
        for k in (r, r + 1, r + 5)
    }
    numbers: Numbers = {}
    for k in (r + 1, r + 5):
        errors, t = runs[f"symmetric, k = {k}"], np.arange(2_000, 20_001)
        numbers[f"symmetric k={k}: log-log slope (theory -2)"] = exponent(t, errors[t])
        numbers[f"symmetric k={k}: (2 eta t)^2 error at 20000 (theory {k - r})"] = float(
            (0.2 * 20_000) ** 2 * errors[20_000]
        )
    numbers["symmetric k=r: squared error at step 1000"] = float(runs[f"symmetric, k = {r}"][1_000])
    graded = low_rank(n, n, np.array([1.0, 0.8, 0.6]))
    asymmetric, per_alpha = {}, []
    for alpha in (0.1, 0.05, 0.025):
        steps = 6_000
        errors, _switch = sensing_course(graded, 6, steps, alpha=alpha, rebalance="none")
        asymmetric[f"plain, α = {alpha}"] = errors
        tail = np.flatnonzero((errors > 1e-24) & (np.arange(steps + 1) > 600))
        tail = tail[len(tail) // 2 :]
        per_alpha.append(-float(np.polyfit(tail, np.log(errors[tail]), 1)[0]) / alpha**2)
    numbers["asymmetric: rate / alpha^2 at alpha = 0.1, 0.05, 0.025 (theory: equal)"] = per_alpha
    after = []
    for alpha in (0.2, 0.1, 0.05, 0.02):
        errors, switch = sensing_course(graded, 6, 3_000, alpha=alpha)
        asymmetric[f"re-factored, α = {alpha}"] = errors
        after.append(int(np.argmax(errors < 1e-16)) - (switch or 0))
    numbers["re-factored: steps from the switch to 1e-16 at alpha = 0.2, 0.1, 0.05, 0.02"] = after
    for condition in (1, 3, 10):
        target = low_rank(n, n, np.linspace(1, 1 / condition, r))
        over, exact = (
            int(np.argmax(sensing_course(target, k, 6_000, alpha=0.02)[0] < 1e-14)) for k in (6, r)
        )
        numbers[f"re-factored k=6 against k=r: steps to 1e-14, kappa={condition}"] = [
            over,
            exact,
            over / exact,
        ]
    line_chart(
        output / "matrix-sensing-symmetric.svg",
        "Symmetric descent: 1/T² as soon as k exceeds the rank (3)",
        "step",
        "squared error",
        {name: thin(errors) for name, errors in runs.items()},
        log_x=True,
    )
    line_chart(
        output / "matrix-sensing-asymmetric.svg",
        "Unequal start: linear at a rate of α²; re-factored once: free of α",
        "step",
        "squared error",
        {
            name: [(t, float(errors[t])) for t in range(0, len(errors), 30) if errors[t] > 1e-24]
            for name, errors in asymmetric.items()
        },
    )
    return numbers


def subgm(output: Path, _: argparse.Namespace) -> Numbers:
    d, r, m, shares = 20, 3, 1500, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    X = low_rank(d, d, np.ones(r), symmetric=True)
    A = np.random.default_rng(1).normal(size=(m, d, d))
    clean = np.einsum("mij,ij->m", A, X)

    def error(share: float, seed: int, **options: Any) -> float:
        rng = np.random.default_rng(seed)
        y = clean + np.where(rng.random(m) < share, rng.normal(0, 10, m), 0)
        return float(
            np.linalg.norm(RobustLowRank(scale=1.0, **options).fit(A, y).matrix_ - X) / np.linalg.norm(X)
        )

    robust = {"eta0": 0.2, "decay": 0.985, "alpha": 1e-4, "max_iter": 900, "norm": "fro"}
    arms: dict[str, dict[str, Any]] = {f"ℓ1, r′ = {k}": {"rank": k, **robust} for k in (r, 2 * r, d)}
    arms["ℓ2, r′ = 20"] = {
        "rank": d,
        "loss": "l2",
        "step": "constant",
        "eta0": 0.1,
        "alpha": 0.1,
        "tol": 1e-6,
    }
    series = {
        name: [(p, float(np.median([error(p, seed, **options) for seed in range(3)]))) for p in shares]
        for name, options in arms.items()
    }
    floors = [
        (alpha, error(0.3, 0, **robust | {"rank": d, "alpha": alpha, "decay": 0.99, "max_iter": 1500}))
        for alpha in (0.1, 0.01, 1e-3, 1e-4)
    ]
    line_chart(
        output / "subgm-corruption.svg",
        "Relative error against the share of gross outliers (rank 3)",
        "share of measurements with an outlier",
        "relative Frobenius error",
        series,
    )
    line_chart(
        output / "subgm-start.svg",
        "The floor of the error follows the size of the start (30 % outliers, r′ = 20)",
        "α",
        "relative Frobenius error",
        {"ℓ1, r′ = 20": floors},
        log_x=True,
    )
    return {
        **{
            f"relative error at 0, 0.1 … 0.5 corrupted: {name}": [e for _, e in points]
            for name, points in series.items()
        },
        "error of r'=d over r'=r at 0.3 corrupted": series["ℓ1, r′ = 20"][3][1] / series["ℓ1, r′ = 3"][3][1],
        "error of l2 over l1 at 0.3 corrupted, r'=d": series["ℓ2, r′ = 20"][3][1]
        / series["ℓ1, r′ = 20"][3][1],
        "error against alpha = 0.1, 0.01, 0.001, 0.0001": [e for _, e in floors],
    }


def light(n: int, d: int, gap: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) * np.r_[np.sqrt(gap), np.ones(d - 1)]


def hard(n: int, d: int, gap: float, heavy: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.zeros((n + heavy, d))
    rows[:n, 0] = np.sqrt(gap / n)
    rows[:n] += 1e-4 * rng.normal(size=(n, d))
    rows[n:, 0] = np.sqrt(gap / heavy)
    rows[np.arange(n, n + heavy), 1 + np.arange(heavy)] += 1
    return rng.permutation(rows)


def streaming_top_eigenvector(output: Path, _: argparse.Namespace) -> Numbers:
    def miss(v: np.ndarray, rows: np.ndarray) -> float:
        top = np.linalg.eigh(rows.T @ rows)[1][:, -1]
        return max(1 - float(v @ top) ** 2, 1e-16)

    def median(
        make: Callable[[int], np.ndarray], fit: Callable[[np.ndarray, int], list[np.ndarray]]
    ) -> float:
        scores = []
        for seed in range(5):
            rows = make(seed)
            scores.append(min(miss(v, rows) for v in fit(rows, seed)))
        return float(np.median(scores))

    arms: dict[str, Callable[[np.ndarray, int], list[np.ndarray]]] = {
        "block, heavy rows kept": lambda x, s: [StreamingPCA(random_state=s).fit(x).components_[0]],
        "block, none kept": lambda x, s: [
            StreamingPCA(heavy_threshold=np.inf, random_state=s).fit(x).components_[0]
        ],
        "Oja, best of its rates": lambda x, s: list(
            StreamingPCA(method="oja-grid", random_state=s).fit(x).candidates_
        ),
    }
    gaps, counts, d = (1.5, 2, 4, 8, 16, 32, 64), (5, 10, 20, 40, 80), 200
    by_gap = {
        name: [(gap, median(lambda s, gap=gap: light(10_000, 50, gap, s), fit)) for gap in gaps]
        for name, fit in arms.items()
        if name != "block, none kept"
    }
    by_heavy = {
        name: [(h, median(lambda s, h=h: hard(2_000, d, 2.0, h, s), fit)) for h in counts]
        for name, fit in arms.items()
    }
    held = []
    for n in (2_000, 8_000, 32_000, 128_000):
        pca = StreamingPCA(random_state=0, n_samples=n, max_heavy=64, heavy_factor=50)
        for seed in range(n // 1_000):
            pca.partial_fit(light(1_000, 100, 4.0, seed))
        held.append(sum(value.nbytes for value in vars(pca._state).values() if hasattr(value, "nbytes")))
    line_chart(
        output / "streaming-gap.svg",
        "1 − cos² against the gap R = σ₁²/σ₂² (Gaussian rows, d = 50, n = 10,000)",
        "R",
        "1 − cos²",
        {**by_gap, "1/R": [(g, 1 / g) for g in gaps]},
        log_x=True,
    )
    line_chart(
        output / "streaming-heavy.svg",
        "1 − cos² against the number of heavy rows (hard instance, d = 200)",
        "heavy rows",
        "1 − cos²",
        by_heavy,
        log_x=True,
    )
    block = by_gap["block, heavy rows kept"]
    tail = [(g, e) for g, e in block if g >= 2]
    return {
        "1 - cos^2 at R = 1.5 … 64, block": [e for _, e in block],
        "exponent of 1 - cos^2 in R for R >= 2 (theory: at most -1)": exponent(*zip(*tail, strict=True)),
        **{
            f"1 - cos^2 at 5 … 80 heavy rows: {name}": [e for _, e in points]
            for name, points in by_heavy.items()
        },
        "bytes held between chunks at n = 2000, 8000, 32000, 128000 (d = 100)": held,
    }


def robust_altmin(output: Path, arguments: argparse.Namespace) -> Numbers:
    m, n, k = 300, 400, 5
    truth = low_rank(m, n, np.linspace(2, 1, k))
    data = np.where(np.random.default_rng(1).random((m, n)) < 0.2, truth, np.nan)
    series: dict[str, list[tuple[float, float]]] = {}
    for name, options in {
        "exact": {"solver": "cholesky"},
        "CG, 1 step": {"solver": "cg", "cg_steps": 1},
        "CG, 2 steps": {"solver": "cg", "cg_steps": 2},
        "sketch, 1 step": {"solver": "sketch", "cg_steps": 1},
        "sketch, 2 steps": {"solver": "sketch", "cg_steps": 2},
    }.items():
        course: list[tuple[float, float]] = []
        MatrixCompletion(
            k,
            reg=0.0,
            fit_bias=False,
            max_iter=20,
            tol=0.0,
            random_state=0,
            callback=lambda t, i, course=course: course.append(
                (
                    t + 1,
                    float(
                        np.linalg.norm((i["row_factors"] @ i["col_factors"].mT).numpy() - truth)
                        / np.linalg.norm(truth)
                    ),
                )
            ),
            **options,
        ).fit(data)
        series[name] = course
    line_chart(
        output / "robust-altmin.svg",
        "Completion with inexact regressions (300 × 400, rank 5, 20 % observed, no noise)",
        "iteration",
        "relative error",
        series,
    )
    rates = {
        name: float(
            np.exp(np.polyfit(*zip(*[(t, np.log(e)) for t, e in c if 3 < t < 14], strict=True), 1)[0])
        )
        for name, c in series.items()
    }
    numbers: Numbers = {
        "error factor of an iteration": rates,
        "error after 11 iterations": {name: c[10][1] for name, c in series.items()},
    }
    return numbers | (ratings_table(arguments.data) if arguments.data else {})


def ratings_table(path: Path) -> Numbers:
    """RMSE on one random fifth of real ratings, of ours and of what else is installed."""
    import pandas as pd

    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    table = table[["userId", "movieId", "rating"]]
    order = np.random.default_rng(0).permutation(len(table))
    test, train = table.iloc[order[: len(table) // 5]], table.iloc[order[len(table) // 5 :]]
    low, high = float(table.rating.min()), float(table.rating.max())
    rows: dict[str, list[float]] = {}

    def ours(name: str, **options: Any) -> None:
        began = time.perf_counter()
        model = MatrixCompletion(clip=(low, high), random_state=0, **options).fit(train)
        rows[name] = [-model.score(test), time.perf_counter() - began]

    ours("mean and biases", n_components=1, reg=1e9)
    ours("eckart, k = 20", n_components=20)
    ours("eckart, k = 50, exact", n_components=50, solver="cholesky")
    ours("eckart, k = 50, CG 1 step", n_components=50, solver="cg", cg_steps=1)
    ours("eckart, k = 50, CG 3 steps", n_components=50, solver="cg", cg_steps=3)
    rows |= _surprise(train, test) | _implicit(train, test, low, high)
    return {"ratings: [RMSE, seconds]": rows}


def _surprise(train: Any, test: Any) -> dict[str, list[float]]:
    try:
        import surprise
    except ImportError:
        return {}
    data = surprise.Dataset.load_from_df(train, surprise.Reader(rating_scale=(0.5, 5)))
    trainset, triples = data.build_full_trainset(), list(test.itertuples(index=False, name=None))
    rows = {}
    for name, model in {
        "Surprise BaselineOnly": surprise.BaselineOnly(verbose=False),
        "Surprise SVD (100 factors)": surprise.SVD(random_state=0),
        "Surprise SVD++ (20 factors)": surprise.SVDpp(random_state=0),
    }.items():
        began = time.perf_counter()
        predictions = model.fit(trainset).test(triples)
        rows[name] = [
            float(np.sqrt(np.mean([(p.est - p.r_ui) ** 2 for p in predictions]))),
            time.perf_counter() - began,
        ]
    return rows


def _implicit(train: Any, test: Any, low: float, high: float) -> dict[str, list[float]]:
    """implicit's ALS knows no missing entries: it fits the residuals of our biases, absent ones as zeros."""
    try:
        from implicit.als import AlternatingLeastSquares
    except ImportError:
        return {}
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
    return {"implicit ALS on residuals (20 factors)": [rmse, time.perf_counter() - began]}


CLAIMS: dict[str, Callable[[Path, argparse.Namespace], Numbers]] = {
    "matrix-sensing-gd": matrix_sensing_gd,
    "subgm": subgm,
    "streaming-top-eigenvector": streaming_top_eigenvector,
    "robust-altmin": robust_altmin,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(CLAIMS), help="methods, with commas")
    parser.add_argument("--data", type=Path, help="file of real ratings")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "evidence" / "figures")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    results = ROOT / "benchmarks" / "results" / "evidence_recovery.json"
    kept = json.loads(results.read_text()) if results.is_file() else {}
    for name in arguments.only.split(","):
        began = time.perf_counter()
        kept[name] = CLAIMS[name](arguments.output, arguments)
        print(f"== {name} ({time.perf_counter() - began:.0f} s)")
        print(json.dumps(kept[name], indent=1, ensure_ascii=False))
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
