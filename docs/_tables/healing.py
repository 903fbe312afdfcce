"""What a few steps of training give back to compressed models."""

from __future__ import annotations

from _rows import Blocks, difference, machine, result, rows, table, tried

import eckart
from eckart.jobs.compare.names import DENSE

NAMES = {method.slug: method.name for method in eckart.methods("compression")} | {DENSE: "dense model"}


def blocks() -> Blocks:
    arms = rows("healing", part="paired")
    lines = [
        (
            "–" if r["arm"] == DENSE else f"{r['ratio']:.0%}",
            NAMES[r["arm"]],
            f"{r['before']:.3f}",
            f"{r['after']:.3f}",
            difference(r, "before", 2),
            difference(r, "gain_of_dense", 2),
            difference(r, "dense_healed", 2),
            difference(r, "best_healed", 2),
            f"{r['lr']:.2g}",
        )
        for r in arms
    ]
    gains = ("by healing", "less what the dense model gains")
    against = ("to the dense model, healed", "to the best of its size, healed")
    head = ("removed", "method", "at once", "healed", *gains, *against, "rate")
    runs = rows("healing", part="run")
    seeds, examples = len({r["seed"] for r in runs if r["seed"]}), len(runs[0]["examples"])
    told = (
        f"\nBits per token on {examples} blocks of the test text, healed by {arms[0]['steps']} steps; "
        f"the mean of {seeds} seeds. "
    )
    return {"board": table(head, lines) + told + machine(result("healing")), "rates": rates()}


def rates() -> str:
    """Each arm's rates and what they gave on the validation text."""
    lines = []
    for arm in rows("healing", part="paired"):
        own = rows("healing", part="run", arm=arm["arm"], ratio=arm["ratio"], seed=0)
        removed = "–" if arm["arm"] == DENSE else f"{arm['ratio']:.0%}"
        lines.append((removed, NAMES[arm["arm"]], tried(own, lambda r: r["bits"])))
    return table(("removed", "method", "rate: bits per token on the validation text"), lines)


def told() -> str:
    """What healing gives, in one sentence."""
    arms = rows("healing", part="paired", ratio=0.2)
    (dense,) = rows("healing", part="paired", arm=DENSE)
    parts = [
        f"{NAMES[r['arm']]} from {r['before']:.2f} to {r['after']:.2f}, {difference(r, 'gain_of_dense', 2)} "
        "beyond what the dense model gains"
        for r in arms
    ]
    return (
        f"{dense['steps']} steps of healing bring SmolLM2 with a fifth removed by {'; by '.join(parts)} "
        f"(the dense model from {dense['before']:.2f} to {dense['after']:.2f} bits per token; [healing](healing.md))."
    )
