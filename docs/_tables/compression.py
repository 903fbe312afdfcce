"""Compressions of one language model at one size."""

from __future__ import annotations

from _rows import Blocks, advice, difference, machine, number, result, table


def blocks() -> Blocks:
    found = result("compression")
    head = (
        *("method", "bits per token", "perplexity", "to the dense model", "to the best", "weights, MB"),
        *("forward", "generation", "compressing, s"),
    )
    lines = [
        (
            r["label"],
            f"{r['score']:.3f}",
            f"{2 ** r['score']:,.1f}",
            difference(r, "dense", 3),
            difference(r, "best", 3),
            number(r["saved_bytes"] and r["saved_bytes"] / 1e6, ".0f"),
            number(r["forward_ratio"], ".2f", "×"),
            number(r["generation_ratio"], ".2f", "×"),
            number(r["prepare_seconds"], ".0f"),
        )
        for r in found["rows"]
        if r.get("score") is not None
    ]
    return {
        "board": table(head, lines) + "\n" + machine(found),
        "advice": advice(found),
    }
