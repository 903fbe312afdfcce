"""Time, memory and bytes of the adapters."""

from __future__ import annotations

from _rows import ROOT, Blocks, machine, result, row, short, table


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


def step_time() -> str:
    """A step of every adapter at one budget: now, before the last round of work on speed, and beside PEFT's own."""
    found, before = (result(name, "benchmarks") for name in ("step_time", "step_time_before"))
    kept = {(r["model"], r["tokens"], r["arm"]): r["x frozen floor"] for r in before["rows"]}
    lines = []
    for r in found["rows"]:
        earlier = kept.get((r["model"], r["tokens"], r["arm"]), "")
        ratios = (r["x frozen floor"], r["products"], earlier, r["x PEFT"])
        shown = [f"{ratio:.2f}" if isinstance(ratio, float) else "" for ratio in ratios]
        lines.append([r["model"], r["tokens"], r["arm"], f"{r['numbers']:,}", f"{r['ms']:,.0f}", *shown])
    head = ("model", "tokens", "arm", "numbers", "ms", "x frozen floor", "products", "before", "x PEFT")
    return table(head, lines) + "\n" + machine(found)


AIMS = {
    "low rank": (("lora", "bone", "mos", "flora-tucker", "nola"), {256: 1.3, 1024: 1.2}),
    "others": (("svfit", "loldu", "randlora", "bone, bat", "salt", "snell"), {256: 2.2, 1024: 1.6}),
}
"""Of each kind of adapter, how often the frozen floor's time a step on MiniLM-L6 was to take at most."""


def aims() -> str:
    """Which arms are within what was aimed at, and which are not, with what their products alone are."""
    lines = []
    for tokens in (256, 1024):
        for kind, (arms, bars) in AIMS.items():
            found = {
                arm: row("step_time", "benchmarks", model="minilm", tokens=tokens, arm=arm) for arm in arms
            }
            ratios = {arm: r["x frozen floor"] for arm, r in found.items()}
            within = [arm for arm, ratio in ratios.items() if round(ratio, 2) <= bars[tokens]]
            above = [
                f"{arm} {ratio:.2f} ({found[arm]['products']:.2f})"
                for arm, ratio in ratios.items()
                if arm not in within
            ]
            lines.append([tokens, kind, bars[tokens], "; ".join(within), "; ".join(above)])
    return table(("tokens", "kind", "at most", "within", "above"), lines)


def build_times() -> str:
    """Seconds to adapt a layer, before the last round of work on it and where the decomposition is kept, and what that
    makes of a model of seven billion numbers."""
    found, before = (result(name, "benchmarks") for name in ("build_times", "build_times_before"))
    kept = {r["arm"]: r["s at 2048"] for r in before["rows"]}
    first, again, model = (
        [f"s at {width}" for width in (512, 1024, 2048)],
        "again, 2048",
        "7B minutes, estimated",
    )
    lines = [
        [
            r["arm"],
            *(short(value) for value in (*map(r.get, first), kept[r["arm"]], r[again])),
            f"{r[model]:,.0f}",
        ]
        for r in found["rows"]
    ]
    return table(("arm", *first, "before, 2048", again, model), lines) + "\n" + machine(found)


def on_a_gpu() -> str:
    """The steps that `benchmarks/gpu.py` measured on a GPU, where it has been run on one."""
    if not (ROOT / "benchmarks" / "results" / "gpu.json").exists():
        return "It has not been run on a GPU yet.\n"
    found = result("gpu", "benchmarks")
    shown = ("x frozen floor", "peak MiB", "ms")
    lines = []
    for r in found["rows"]:
        if r["part"] in ("steps", "compiled") and "error" not in r:
            figures = [f"{r[key]:,.2f}" if isinstance(r[key], float) else "" for key in shown]
            way = "compiled" if r["compiled"] else "eager"
            lines.append(
                [r["arm"].partition(", width")[0], r["width"], r["tokens"], r["route"], way, *figures]
            )
    head = ("arm", "width", "tokens", "route", "way", *shown)
    failed = [f"{r['part']}, {r['arm']}: {r['error']}" for r in found["rows"] if "error" in r]
    text = table(head, lines) + f"\nOn {found['machine'].get('gpu', 'no GPU')}. " + machine(found)
    return text + "".join(f"\n- {line}" for line in failed) + ("\n" if failed else "")


def blocks() -> Blocks:
    return {
        "step-time": step_time(),
        "prompts": measured("prompt_length", "ms", "ms", "positions", "numbers", "x prompt tuning"),
        "memory": measured("peak_memory", "peak MiB", "MiB", "x lora"),
        "depth": measured("memory_by_depth", "MiB a layer", "MiB a layer", "x lora"),
        "aims": aims(),
        "build": build_times(),
        "gpu": on_a_gpu(),
        "bytes": measured("checkpoint_bytes", "bytes", "bytes", "x PEFT"),
    }
