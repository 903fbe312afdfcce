"""The methods compared on SST-2."""

from __future__ import annotations

from _rows import Blocks, Row, machine, percent, result, signed, table


def points(r: Row) -> str:
    """The difference to the best and its interval, in points."""
    if r["to_best"] is None:
        return "–"
    value, low, high = (signed(100 * r[key], 1) for key in ("to_best", "to_best_low", "to_best_high"))
    return f"{value} ({low} to {high})"


def number(value: float | None, form: str = ",.0f") -> str:
    return "–" if value is None else format(value, form)


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
    (told,) = (r["advice"] for r in found["rows"] if "advice" in r)
    tested = [
        (
            r["label"],
            f"{percent(r['score'])} %",
            points(r),
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
        "advice": "".join(f"> {line}\n" for line in told),
    }
