"""Structured pretraining at equal size: scores, curves, and the rates that were tried."""

from __future__ import annotations

from _rows import Blocks, machine, result, row, rows, table


def blocks() -> Blocks:
    runs = rows("structured-pretraining", part="run")
    arms = list(dict.fromkeys(r["arm"] for r in runs))
    scores, curves, rates = [], [], []
    for arm in arms:
        own = [r for r in runs if r["arm"] == arm]
        paired = row("structured-pretraining", part="paired", arm=arm)
        test = sum(r["test"] for r in own) / len(own)
        gap = "–"
        if paired["against"] != arm:
            gap = f"{paired['difference']:+.3f} ± {paired['half of the 95 % interval']:.3f}"
        seconds = sum(r["seconds"] for r in own) / len(own)
        scores.append(
            (arm, f"{own[0]['parameters']:,}", f"{own[0]['lr']:.2g}", f"{test:.3f}", gap, f"{seconds:.0f}")
        )
        means = [sum(points) / len(own) for points in zip(*(r["validation"] for r in own), strict=True)]
        curves.append((arm, *(f"{mean:.3f}" for mean in means)))
        tried = rows("structured-pretraining", part="rates", arm=arm)
        rates.append((arm, ", ".join(f"{r['lr']:.2g}: {r['validation']:.3f}" for r in tried)))
    against = rows("structured-pretraining", part="paired")[0]["against"]
    head = ("arm", "parameters", "rate", "test loss", f"minus that of {against}", "seconds of a run")
    return {
        "scores": table(head, scores) + "\n" + machine(result("structured-pretraining")),
        "curves": table(("arm", *(str(step) for step in runs[0]["steps"])), curves),
        "rates": table(("arm", "rate: validation loss"), rates),
    }
