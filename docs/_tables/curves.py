"""Curves of every adapter and rule beside LoRA's: one table of all, and a small one for each method's page."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from _rows import ROOT, Blocks, Row, between, machine, result, rows, signed, table, tried

from eckart.jobs.compare.names import FULL, HEAD_ONLY, LORA

MARK = "curve"


def arms() -> list[str]:
    """Those whose seeds are all there, in the order in which they were run."""
    runs = rows("curves", part="run")
    seeds = {row["seed"] for row in runs if row["arm"] == LORA}
    done = {
        arm: {row["seed"] for row in runs if row["arm"] == arm}
        for arm in dict.fromkeys(r["arm"] for r in runs)
    }
    return [arm for arm, own in done.items() if own >= seeds]


def runs_of(arm: str) -> list[Row]:
    return rows("curves", part="run", arm=arm)


def line(arm: str) -> list[str]:
    """The arm's name, its curve, its difference to LoRA at the end, and its rate."""
    own = runs_of(arm)
    curves = [row["validation"] for row in own if row["validation"]]
    means = [f"{mean(points):.3f}" for points in zip(*curves, strict=True)] if len(curves) == len(own) else []
    found = rows("curves", part="paired", arm=arm)
    gap = "–"
    if found and means:
        gap = f"{signed(found[0]['difference'], 3)} ± {found[0]['half of the 95 % interval']:.3f}"
    points = len(own[0]["at"])
    return [own[0]["label"], *(means or ["diverged"] * points), gap, f"{own[0]['lr']:g}"]


def head() -> list[str]:
    return ["after steps", *map(str, runs_of(LORA)[0]["at"]), "minus LoRA's at the end", "rate"]


def everything() -> str:
    lines = [[*line(arm), f"{runs_of(arm)[0]['trained']:,}"] for arm in arms()]
    return table([*head(), "trained"], lines)


def rates() -> str:
    """Each arm's rates and what they gave."""

    def end(run: Row) -> float | None:
        return run["validation"][-1] if run["validation"] else None

    lines = [(runs_of(arm)[0]["label"], tried(rows("curves", part="tuning", arm=arm), end)) for arm in arms()]
    return table(("method", "rate: validation loss"), lines)


def pages() -> dict[Path, list[str]]:
    """The pages that show curves, and the arms on each beside LoRA and the head alone."""
    found: dict[Path, list[str]] = {ROOT / "docs/methods/lora.md": []}
    for arm in arms():
        adapter, _, rule = arm.partition("+")
        page = ROOT / f"docs/training/{rule}.md" if rule else ROOT / f"docs/methods/{adapter}.md"
        page = page if page.exists() else ROOT / f"docs/methods/{adapter}.md"
        if page.exists() and arm not in (LORA, FULL, HEAD_ONLY):
            found.setdefault(page, []).append(arm)
    return found


def small(shown: list[str]) -> str:
    """The table of a method's page."""
    bases = [arm.partition("+")[0] for arm in shown]
    done = arms()
    wanted = dict.fromkeys([*shown, *bases, LORA, HEAD_ONLY])
    return table(head(), [line(arm) for arm in wanted if arm in done])


def on_page(text: str, shown: list[str]) -> str:
    """A method's page with its curve."""
    return between(text, MARK, f"\n{small(shown)}\n")


def blocks() -> Blocks:
    return {"all": everything() + "\n" + machine(result("curves")), "rates": rates()}
