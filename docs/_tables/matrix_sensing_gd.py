"""MatrixSensingGD."""

from __future__ import annotations

from _rows import Blocks, listed, row, rows, short, signed, table


def blocks() -> Blocks:
    slug = "matrix-sensing-gd"
    head = (
        "k",
        "log–log slope of the squared error, steps 2,000 to 20,000 (theory −2)",
        "(2ηt)² · error at step 20,000 (theory k − r)",
    )
    over = [r for r in rows(slug, part="symmetric") if "slope" in r]
    lines = [(r["k"], signed(r["slope"], 3), f"{r['(2 eta t)^2 error']:.3f}") for r in over]
    exact = row(slug, part="symmetric", k=3)
    lines.append(("3 = r", f"linear: {short(exact['error'])} after {exact['step']:,} steps", "–"))
    plain, balanced = rows(slug, part="plain"), rows(slug, part="re-factored")
    rates = listed(f"{r['rate / alpha^2']:.2f}" for r in plain)
    steps = listed(r["steps to 1e-16"] for r in balanced)
    return {
        "symmetric": table(head, lines),
        "unequal": "Rate of the squared error divided by α², "
        f"for α = {listed(r['alpha'] for r in plain)}: {rates}.\n",
        "balanced": "Steps from the re-factoring to a squared error of 1e-16, "
        f"for α = {listed(r['alpha'] for r in balanced)}: {steps}.\n",
        "condition": table(
            ("condition number", "k = 6, re-factored", "k = 3", "ratio"),
            [
                (r["kappa"], f"{r['over']:,}", f"{r['exact']:,}", f"{r['ratio']:.2f}")
                for r in rows(slug, part="condition")
            ],
        ),
    }
