"""AFM on the census."""

from __future__ import annotations

from _rows import Blocks, difference, machine, number, result, rows, table


def blocks() -> Blocks:
    arms = rows("afm-adult", part="arm")
    seeds = len({r["seed"] for r in rows("afm-adult", part="run")})
    whole = arms[0]["parameters"]
    lines = [
        (
            r["arm"],
            f"{r['parameters']:,}",
            f"{whole / r['parameters']:.1f}×",
            number(r["before"], ".4f"),
            f"{r['after']:.4f}",
            "–" if r is arms[0] else difference(r, "original", 4),
            f"{r['lr']:.2g}",
        )
        for r in arms
    ]
    head = ("arm", "parameters", "smaller", "AUC at once", "after a pass", "to the original", "learning rate")
    runs = {(r["arm"], r["seed"]): r for r in rows("afm-adult", part="run")}
    numbers = sorted({seed for _, seed in runs})
    ahead = {
        when: sum(runs["AFM of the MLP", k][when] > runs["SVD of the MLP", k][when] for k in numbers)
        for when in ("before", "after")
    }
    told = (
        f"Of the MLP alone, AFM is ahead of SVD in {ahead['before']} of {seeds} seeds at once and in {ahead['after']} "
        "after the pass.\n"
    )
    return {
        "features": told,
        "arms": f"{table(head, lines)}\nMeans of {seeds} seeds. " + machine(result("afm-adult")),
    }
