"""PELA of MiniLM on STS-B."""

from __future__ import annotations

from _rows import Blocks, difference, machine, number, result, rows, table, tried


def blocks() -> Blocks:
    arms = rows("pela-stsb", part="arm")
    runs = [r["arm"] for r in rows("pela-stsb", part="run")]
    lines = [
        (
            r["arm"],
            f"{r['removed']:.0%}",
            f"{r['correlation']:.3f}",
            difference(r, "dense", 3),
            difference(r, "pela", 3),
            number(r["lr"], ".2g"),
        )
        for r in arms
    ]
    head = ("encoder", "removed", "rank correlation", "to the dense one", "to PELA", "rate")
    rates = [
        (arm, tried(rows("pela-stsb", part="tuning", arm=arm), lambda r: r["correlation"]))
        for arm in dict.fromkeys(r["arm"] for r in rows("pela-stsb", part="tuning"))
    ]
    told = f"\nMeans of {max(map(runs.count, runs))} seeds where there is training. "
    return {
        "board": table(head, lines) + told + machine(result("pela-stsb")),
        "rates": table(("encoder", "rate: rank correlation on the pairs held out"), rates),
    }


def told() -> str:
    """How near PELA comes, in one sentence."""
    arms = {r["arm"]: r for r in rows("pela-stsb", part="arm")}
    shown = {arm: f"{r['correlation']:.3f}" for arm, r in arms.items()}
    return (
        "MiniLM with half of its linear layers removed agrees with people's scores (STS-B) to "
        f"{shown['truncated SVD']} "
        f"by truncated SVD, {shown['PELA']} by PELA, {shown['LoRD']} by LoRD, which trains nothing; the whole one to "
        f"{shown['dense encoder']} ([PELA](pela.md))."
    )
