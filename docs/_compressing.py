"""What was measured of `eckart compress`, on its page: perplexity by size, time and memory, speed of the result."""

from __future__ import annotations

from typing import Any

from _rows import between, difference, machine, result, share, table


def ladder() -> str:
    """Perplexities of compressed models, from the rows of the benchmark."""
    found = result("compression_ladder", "benchmarks")
    lines = []
    for row in sorted(found["rows"], key=lambda row: (row["ratio"], row["perplexity"])):
        if row["method"] == "dense":
            lines.append(
                ("dense", *("",) * 3, f"{row['perplexity']:.1f}", "", f"{row['accuracy']:.1%}", *("",) * 2)
            )
            continue
        value = row["perplexity"]
        shown = f"{value:.1f}" if value < 1e4 else f"{value:.1e}"
        sizes = f"{row['removed']:.1%}", f"{row['parameters']:,}"
        right = f"{row['accuracy']:.1%}", share(row)
        asked, seconds = f"{row['ratio']:.0%}", f"{row['processor s']:.0f}"
        lines.append((row["method"], asked, *sizes, shown, difference(row, "dense", 2), *right, seconds))
    about = found["about"]
    scores = ("perplexity", "bits above the dense model", "accuracy", "of the dense model's")
    head = ("method", "asked", "removed", "parameters", *scores, "s")
    tokens = f"{about['calibration tokens']:,} tokens of calibration, {about['test tokens']:,} of test"
    told = (
        "accuracy is the share of tokens that the model finds likeliest; "
        "seconds of one thread for compressing, without the statistics"
    )
    return f"\n{table(head, lines)}\nContext {about['context']}; {tokens}; {told}. {machine(found)}\n"


def speeds() -> str:
    """Speeds and memory of compressed models against the dense one, from the rows of the benchmark."""
    found = result("compression_speed", "benchmarks")
    rows = {(row["arm"], row["ratio"], row["what"]): row for row in found["rows"]}
    lines = []
    for arm, ratio in dict.fromkeys((row["arm"], row["ratio"]) for row in found["rows"]):
        if arm.startswith("dense"):
            continue
        prefill, generation = (rows[arm, ratio, what] for what in ("prefill", "generation"))
        dense = rows["dense", ratio, "generation"]
        part, read = dense["in products"], generation["weight MB"] / dense["weight MB"]
        bound = f"{1 / (1 - part + part * read):.2f}×"
        times = (f"{row['x dense']:.2f}×" for row in (prefill, generation))
        held = f"{generation['peak MiB']:.0f} ({generation['peak x dense']:.2f}×)"
        size = f"{generation['weight MB']:.0f} ({read:.2f}×)"
        lines.append((f"{ratio:.0%}", arm, f"{generation['removed']:.1%}", size, held, *times, bound))
    head = ("asked", "method", "removed", "weights, MB", "peak, MiB", "prefill", "generation", "bytes allow")
    dense = {what: rows["dense", 0.3, what] for what in ("prefill", "generation")}
    rates = " and ".join(f"{row['tokens/s']:,.0f}" for row in dense.values())
    last = dense["generation"]
    told = (
        f"The dense model: {rates} tokens a second, {last['weight MB']:.0f} MB of weights, a peak of "
        f"{last['peak MiB']:.0f} MiB; {last['in products']:.0%} of its time of generation are in products of matrices. "
        f"With its own weights by columns it generates {spread('dense, by columns', found)} times as fast. "
    )
    return f"\n{table(head, lines)}\n{told}1 thread of {found['machine']['cpu']}.\n\n"


def spread(arm: str, found: dict[str, Any]) -> str:
    """From the slowest to the fastest generation of an arm over the ratios, as multiples of the dense model's."""
    times = [r["x dense"] for r in found["rows"] if r["arm"] == arm and r["what"] == "generation"]
    return " to ".join(dict.fromkeys(f"{end(times):.2f}" for end in (min, max)))


def costs() -> str:
    """Time and memory of the command, from the rows of the benchmark."""
    found = result("compression_cost", "benchmarks")
    keys = ("processor s", "peak MiB")
    lines = [(r["method"], *(f"{r[key]:,.0f}" for key in keys)) for r in found["rows"]]
    head = ("method", "whole command, s of the processor", "peak memory, MiB")
    return f"\n{table(head, lines)}\n1 thread of {found['machine']['cpu']}.\n\n"


def on_page(text: str) -> str:
    """The page of the command with what was measured."""
    for mark, block in (("ladder", ladder()), ("speed", speeds()), ("cost", costs())):
        text = between(text, mark, block)
    return text
