"""MatrixCompletion."""

from __future__ import annotations

from statistics import mean

from _rows import Blocks, result, row, rows, short, table


def blocks() -> Blocks:
    names = {
        "exact": "exact (Cholesky)",
        "sketch, 1 step": "sketch of 4 k rows, 1 step",
        "sketch, 2 steps": "sketch of 4 k rows, 2 steps",
        "CG, 2 steps": "CG, 2 steps from the last iterate",
        "CG, 1 step": "CG, 1 step from the last iterate",
    }
    solved = [(name, row("robust-altmin", solver=solver)) for solver, name in names.items()]
    cost = result("completion_scaling", "benchmarks")
    seconds, gib = cost["seconds"], cost["peak resident MiB"] / 1024
    lines = [
        (
            name,
            *(f"{s:.2f}" if s > 1 else f"{s:.3f}" for s in seconds[solver].values()),
            f"{cost[f'exponent in ratings, {solver}']:.2f}",
        )
        for solver, name in (("cg", "CG, 3 steps"), ("cholesky", "Cholesky"))
    ]
    by_rank = " and ".join(
        f"{cost[f'exponent in k, {solver}']:.2f} ({name})"
        for solver, name in (("cg", "CG"), ("cholesky", "Cholesky"))
    )
    return {
        "ranking": ranking(),
        "peers": peers(),
        "solvers": table(
            ("regressions", "error after 11 iterations", "factor of an iteration"),
            [
                (name, short(r["error after 11 iterations"]), f"{r['factor of an iteration']:.3f}")
                for name, r in solved
            ],
        ),
        "ratings": table(
            ("model", "RMSE", "fit, s"),
            [
                (r["model"], f"{r['rmse']:.4f}", f"{r['seconds']:.1f}")
                for r in sorted(rows("ratings"), key=lambda r: -r["rmse"])
            ],
        ),
        "cost": table(("ratings", *(f"{int(n):,}" for n in seconds["cg"]), "exponent"), lines)
        + f"\nPeak memory at ten million ratings {gib:.1f} GiB, the data and their generation included. "
        f"Over k from 8 to 64 the exponents are {by_rank}.\n",
    }


def ranking() -> str:
    found = result("ranking", "benchmarks")
    names = next(iter(found.values()))
    lines = [(name, *(f"{mean(arms[name]['ndcg']):.4f}" for arms in found.values())) for name in names]
    return table(("nDCG@10", *found), lines)


def peers() -> str:
    found = rows("completion_peers", "benchmarks")
    names = {"eckart": "eckart, its defaults", "implicit": "implicit 0.7.3 ALS, 15 iterations"}
    parts = []
    for size in sorted({r["ratings"] for r in found}):
        lines = [
            (
                names.get(r["arm"], f"{r['arm'].replace(' ', ', λ = ')}"),
                "" if r["held-out RMSE"] is None else f"{r['held-out RMSE']:.4f}",
                f"{r['processor seconds']:.1f}",
                f"{r['MiB']:.0f}",
            )
            for r in found
            if r["ratings"] == size
        ]
        parts.append(f"{size:,} ratings:\n\n" + table(("", "held-out RMSE", "processor s", "MiB"), lines))
    return "\n".join(parts)
