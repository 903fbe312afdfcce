"""Compressions of one language model at one size."""

from __future__ import annotations

from _rows import Blocks, advice, difference, machine, number, result, rows, share, table

SHAPES = {
    "MoDeGPT": "modegpt",
    "Whitened SVD": "whitened-svd",
    "Truncated SVD": "whitened-svd",
} | dict.fromkeys(("LoRD", "AFM"), "lord")
"""Which arm of the benchmark of speed has layers of the same shapes."""


def blocks() -> Blocks:
    found = result("compression")
    speeds = {(r["arm"], r["what"]): r["x dense"] for r in rows("compression_speed", "benchmarks", ratio=0.2)}
    head = (
        *("method", "bits per token", "perplexity", "accuracy", "to the dense model", "to the best"),
        *("weights, MB", "prefill", "generation"),
    )
    lines = [
        (
            r["label"],
            f"{r['score']:.3f}",
            f"{2 ** r['score']:,.1f}",
            number(r["token_accuracy"], ".1%"),
            difference(r, "dense", 3),
            difference(r, "best", 3),
            number(r["saved_bytes"] and r["saved_bytes"] / 1e6, ".0f"),
            *(
                number(speeds.get((SHAPES.get(r["label"]), what)), ".2f", "×")
                for what in ("prefill", "generation")
            ),
        )
        for r in found["rows"]
        if r.get("score") is not None
    ]
    return {
        "verdicts": verdicts(),
        "board": table(head, lines) + "\n" + machine(found),
        "advice": advice(found),
    }


def verdicts() -> str:
    """What was published of each method, and what is seen here."""
    found = {r["label"]: r for r in result("compression")["rows"] if r.get("score") is not None}
    bits = {label: f"{r['score']:.2f}" for label, r in found.items()}
    modegpt, lord = found["MoDeGPT"], difference(found["LoRD"], "dense", 2)
    ahead = difference(found["Whitened SVD"], "best", 2)
    ladder = rows("compression_ladder", "benchmarks", method="modegpt")
    kept = {r["ratio"]: share(r) for r in ladder}
    lines = [
        (
            "MoDeGPT",
            "90–95 % of zero-shot accuracy at 25–30 %; ahead of factors of single matrices",
            f"{difference(modegpt, 'dense', 2)} bits above the dense model; whitened SVD {ahead} above MoDeGPT; "
            f"of the accuracy of the next token {kept[0.2]} stay, at 30 % {kept[0.3]}",
            "the order holds; [less of the accuracy stays](zero-shot.md)",
        ),
        (
            "LoRD",
            "under 1 % of perplexity for ranks cut by up to 39.6 %; the mean kept by a bias helps",
            f"{lord} bits above the dense model; {bits['LoRD']} bits with the mean, {bits['Whitened SVD']} without",
            "neither holds on this model at this size",
        ),
        (
            "WeLore",
            "ranks from the spectra beat uniform ones, without data",
            f"{bits['WeLore']} bits, uniform ranks {bits['Truncated SVD']}, a unigram {bits['unigram']}",
            "the order holds; both are beyond use until they are trained",
        ),
        (
            "AFM",
            "features are of low rank where weights are not",
            f"{bits['AFM']} bits, weights alone {bits['Truncated SVD']}",
            "holds; on linear layers it is LoRD",
        ),
    ]
    return table(("method", "published", "here, a fifth removed, no training", "verdict"), lines)
