"""The methods compared on SST-2."""

from __future__ import annotations

from _rows import Blocks, advice, difference, machine, number, percent, result, table


def blocks() -> Blocks:
    head = (
        "method",
        "accuracy",
        "to the best, in points",
        "ruled out",
        "trained",
        "saved bytes",
        "peak memory (MB)",
        "step time",
        "learning rate",
        "seeds",
    )
    found = result("sst2")
    tested = [
        (
            r["label"],
            f"{percent(r['score'])} %",
            difference(r, "best", 1, 100),
            "yes" if r["ruled_out"] else "",
            number(r["trained_parameters"]),
            number(r["saved_bytes"]),
            number(r["peak_memory_mb"]),
            number(r["step_time_ratio"], ".2f"),
            number(r["lr"], "g"),
            number(r["seeds"]),
        )
        for r in found["rows"]
        if r.get("score") is not None
    ]
    dropped = [(r["method"], r["dropped"]) for r in found["rows"] if "dropped" in r]
    return {
        "board": table(head, tested) + "\n" + machine(found),
        "dropped": table(("dropped", "when and why"), dropped),
        "advice": advice(found),
    }
