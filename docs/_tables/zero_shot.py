"""What compressed models keep of the accuracy of answers that nothing was trained for."""

from __future__ import annotations

from _rows import Blocks, Row, difference, machine, result, rows, share, table

from _tables.healing import NAMES
from eckart.jobs.compare.names import DENSE


def points(r: Row, word: str) -> str:
    """A difference in points; a dash where there is none."""
    return difference(r, word, 1, 100) if f"to_{word}" in r else "–"


def blocks() -> Blocks:
    found = rows("zero-shot")
    lines = [
        (
            "–" if r["arm"] == DENSE else f"{r['ratio']:.0%}",
            NAMES[r["arm"]],
            f"{r['accuracy']:.1%}",
            share(r) if "kept" in r else "–",
            points(r, "dense"),
            points(r, "modegpt"),
        )
        for r in found
    ]
    head = (
        "removed",
        "method",
        "accuracy",
        "of the dense model's",
        "to it, in points",
        "to MoDeGPT, in points",
    )
    told = f"\n{found[0]['questions']} questions of four passages each. "
    return {"board": table(head, lines) + told + machine(result("zero-shot"))}


def told() -> str:
    """What is kept at three tenths, in one sentence."""
    shown = "; ".join(f"{NAMES[r['arm']]} {share(r)}" for r in rows("zero-shot", ratio=0.3))
    return (
        "With 30 % of SmolLM2's linear layers removed and nothing trained, so much of its accuracy in choosing which "
        f"passage follows stays: {shown} ([zero-shot accuracy](zero-shot.md))."
    )
