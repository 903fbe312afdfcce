"""TRP on Fashion-MNIST."""

from __future__ import annotations

from _rows import Blocks, difference, machine, percent, result, rows, table


def blocks() -> Blocks:
    arms = rows("trp-fashion", part="arm")
    seeds = len({r["seed"] for r in rows("trp-fashion", part="run")})
    lines = [
        (
            f"{r['ratio']:.0%}" if r["ratio"] else "none",
            r["arm"],
            percent(r["accuracy"]),
            difference(r, "plain", 1, 100),
        )
        for r in arms
    ]
    head = ("multiply–adds removed", "training", "accuracy, %", "to plain, in points")
    chosen = [
        (
            r["arm"],
            f"{r['lr']:.2g}",
            f"{r['lost']:.2g}" if "lost" in r else "–",
            f"{r['nuclear']:.2g}" if "nuclear" in r else "–",
        )
        for r in arms
        if not r["ratio"]
    ]
    return {
        "board": f"{table(head, lines)}\nMeans of {seeds} seeds. " + machine(result("trp-fashion")),
        "options": table(("training", "learning rate", "energy lost, 1 − τ", "λ"), chosen),
    }


def told() -> str:
    """What factorising costs a network trained plainly and one trained with TRP, in one sentence."""
    arms = {(r["arm"], r["ratio"]): r for r in rows("trp-fashion", part="arm")}
    ratios = sorted({ratio for _, ratio in arms if ratio})
    shown = "; ".join(
        f"{ratio:.0%} {percent(arms['plain', ratio]['accuracy'])} and {percent(arms['TRP', ratio]['accuracy'])} %"
        for ratio in ratios
    )
    whole = " and ".join(percent(arms[arm, 0.0]["accuracy"]) for arm in ("plain", "TRP"))
    return (
        f"A small network on Fashion-MNIST, trained plainly and with TRP, gets {whole} % right whole, and with so many "
        f"multiply–adds removed, nothing fine-tuned: {shown} ([TRP](trp.md))."
    )
