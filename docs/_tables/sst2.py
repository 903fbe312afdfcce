"""The methods compared on SST-2."""

from __future__ import annotations

from _rows import Blocks, machine, percent, result, table


def blocks() -> Blocks:
    head = (
        "method",
        "accuracy",
        "95 % interval",
        "trained",
        "saved bytes",
        "peak memory (MB)",
        "step time",
        "learning rate",
        "seeds",
    )
    found = result("sst2")
    (told,) = (r["advice"] for r in found["rows"] if "advice" in r)
    lines = [
        (
            r["label"],
            f"{percent(r['score'])} %",
            f"{percent(r['ci_low'])}–{percent(r['ci_high'])} %",
            f"{r['trained_parameters']:,.0f}",
            f"{r['saved_bytes']:,.0f}",
            f"{r['peak_memory_mb']:.0f}",
            f"{r['step_time_ratio']:.2f}×",
            f"{r['lr']:g}",
            r["seeds"],
        )
        for r in found["rows"]
        if "label" in r
    ]
    return {"board": table(head, lines) + "\n" + machine(found), "advice": f"> {told}\n"}
