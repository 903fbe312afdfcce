"""Time, memory and bytes of the adapters."""

from __future__ import annotations

from _rows import Blocks, machine, result, table


def measured(name: str, value: str, unit: str, *ratios: str) -> str:
    """The rows of a benchmark: model, tokens where there are any, arm, what was measured, and ratios "
    "beside it."""
    found = result(name, "benchmarks")
    titles = ["model", *(["tokens"] if "tokens" in found["rows"][0] else []), "arm"]
    lines = []
    for r in found["rows"]:
        numbers = [f"{r[key]:.3f}" if isinstance(r[key], float) else str(r[key]) for key in ratios]
        shown = f"{r[value]:,.1f}" if isinstance(r[value], float) else f"{r[value]:,}"
        lines.append([*(r[title] for title in titles), shown, *numbers])
    return table([*titles, unit, *ratios], lines) + "\n" + machine(found)


def blocks() -> Blocks:
    return {
        "step-time": measured("step_time", "ms", "ms", "x frozen floor", "x PEFT"),
        "prompts": measured("prompt_length", "ms", "ms", "positions", "numbers", "x prompt tuning"),
        "memory": measured("peak_memory", "peak MiB", "MiB", "x lora"),
        "depth": measured("memory_by_depth", "MiB a layer", "MiB a layer", "x lora"),
        "bytes": measured("checkpoint_bytes", "bytes", "bytes", "x PEFT"),
    }
