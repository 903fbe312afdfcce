"""Compressions of one language model at one size."""

from __future__ import annotations

from _rows import Blocks, Row, machine, result, signed, table


def bits(r: Row, word: str) -> str:
    """A difference in bits per token and its interval."""
    if r[f"to_{word}"] is None:
        return "–"
    value, low, high = (signed(r[f"to_{word}{end}"], 3) for end in ("", "_low", "_high"))
    return f"{value} ({low} to {high})"


def number(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else format(value, form) + unit


def blocks() -> Blocks:
    found = result("compression")
    (told,) = (r["advice"] for r in found["rows"] if "advice" in r)
    head = (
        *("method", "bits per token", "perplexity", "to the dense model", "to the best", "weights, MB"),
        *("forward", "generation", "compressing, s"),
    )
    lines = [
        (
            r["label"],
            f"{r['score']:.3f}",
            f"{2 ** r['score']:,.1f}",
            bits(r, "dense"),
            bits(r, "best"),
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
        "advice": "".join(f"> {line}\n" for line in told),
    }
