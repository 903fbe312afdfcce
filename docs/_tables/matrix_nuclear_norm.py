"""Metrics of hidden states."""

from __future__ import annotations

from _rows import Blocks, row, rows, signed, table, third

METRICS = ("matrix_nuclear_norm", "matrix_entropy", "nuclear_norm", "effective_rank", "stable_rank")


def blocks() -> Blocks:
    medians = [
        (
            r["width"],
            r["step"],
            f"{r['bits_per_byte']:.3f}",
            *(third(r[f"{m}{s}"]) for m in METRICS[:2] for s in ("", "_shuffled", "_rotated")),
        )
        for r in rows("metrics-training", kind="median of the seeds")
        if r["step"] in (0, 52, 125, 300)
    ]
    rho = [
        (
            r["metric"].replace("_", " "),
            f"{signed(r['stages'])} ({signed(r['stages, least'])} to {signed(r['stages, most'])})",
            signed(r["widths at the end"]),
            signed(r["all"]),
        )
        for r in rows("metrics-training", kind="rank correlation with the loss")
    ]
    layers = [
        (
            r["minilm"],
            r["layer"],
            third(r["matrix_nuclear_norm"]),
            third(r["matrix_entropy"]),
            f"{r['effective_rank']:.1f}",
            f"{r['stable_rank']:.1f}",
        )
        for r in rows("metrics-pretrained")
        if r["layer"] in ((0, 3, 5, 6) if r["minilm"] == "trained" else (0, 6))
    ]
    scores = ("matrix nuclear norm", "bytes shuffled", "features rotated")
    return {
        "stages": table(("width", "step", "bits a byte", *scores, "matrix entropy", *scores[1:]), medians),
        "correlation": table(
            (
                "metric",
                "over the stages of one network: mean (least to most)",
                "over the widths, at the end",
                "over everything",
            ),
            rho,
        ),
        "layers": table(
            ("", "layer", "matrix nuclear norm", "matrix entropy", "effective rank", "stable rank"), layers
        ),
        "plain-form": plain_form(),
        "short-texts": cost("n = 256"),
        "long-texts": cost("n = d"),
    }


def plain_form() -> str:
    lines = [
        (
            f"{r['tokens']:,} × {r['width']:,}",
            f"{r['ms']:.2f}",
            f"{r['plain form, ms']:.2f}",
            f"{r['x plain form']:.2f}",
        )
        for r in rows("column_norms", "benchmarks")
    ]
    return table(("tokens × width", "ms", "plain form, ms", "ratio"), lines)


def cost(case: str) -> str:
    names = {
        "column norms": "matrix nuclear norm",
        "entropy, Gram": "matrix entropy (smaller Gram matrix, float64)",
        "nuclear norm": "exact nuclear norm (singular values)",
        "entropy, SVD": "the paper's entropy (SVD of the d×d covariance)",
    }
    sizes, lines = (768, 1536, 2048, 4096), []
    for arm, name in names.items():
        found = [row("metric_scaling", "benchmarks", case=case, arm=arm, width=d) for d in sizes]
        cells = (
            f"{r['ms']:,.1f}" + (f" ({r['x column norms']:,.1f})" if arm != "column norms" else "")
            for r in found
        )
        lines.append((name, *cells, f"{found[0]['exponent in d']:.2f}"))
    return table((case, *(f"d = {d:,}" for d in sizes), "exponent in d"), lines)
