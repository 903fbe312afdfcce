"""S4D."""

from __future__ import annotations

from statistics import mean, stdev

from scipy.stats import t

from _rows import Blocks, Row, percent, row, rows, table

FASHION = {
    "LegS": {"init": "legs"},
    "Inv": {"init": "inv"},
    "Lin": {"init": "lin"},
    "random frequencies": {"init": "rand"},
    "random frequencies and decays": {"init": "rand", "real_random": True},
    "Real": {"init": "real"},
    "LegS with random decays": {"init": "legs", "real_random": True},
    "LegS, bilinear": {"init": "legs", "discretization": "bilinear"},
    "LegS, A, B and Δ frozen": {"init": "legs", "ssm_lr": 0.0},
    "GRU of equal width": {"model": "gru"},
    "attention of equal width, both directions": {"model": "attention"},
}
"""The rows of the table of starts, and which runs are theirs."""


def fashion(settings: Row) -> list[Row]:
    """The runs on 10,000 images with these settings, the others at their defaults."""
    settings = {"model": "s4d"} | settings
    if settings["model"] == "s4d":
        settings = {"discretization": "zoh", "real_random": False, "ssm_lr": 0.001} | settings
    found = rows("s4d-fashion", images=10_000, epochs=3, **settings)
    return sorted(found, key=lambda r: r["seed"])


def blocks() -> Blocks:
    recipe = row("s4d-fashion", images=54_000)
    starts = []
    for name, settings in FASHION.items():
        found = fashion(settings)
        scores = [r["test"] for r in found[:3]]
        blank = [""] * (3 - len(scores))
        middle = percent(mean(scores)) if not blank else ""
        starts.append((name, f"{found[0]['parameters']:,}", *map(percent, scores), *blank, middle))
    listops = []
    for r in rows("s4d-listops"):
        if "model" in r:
            interval = f" ({percent(r['low'])} to {percent(r['high'])})" if r["parameters"] else ""
            parts = (percent(value) for key, value in r.items() if key.endswith("tokens"))
            listops.append(
                (r["model"], f"{r['parameters']:,}", percent(r["accuracy"]) + interval, *parts, r["seconds"])
            )
    return {
        "recipe": f"**{percent(recipe['test'])} %** of the test images, after "
        f"{recipe['train_seconds']:.0f} s of training "
        f"on one of two cores, the other one busy; {recipe['parameters']:,} parameters.\nRead pixel by "
        "pixel as a "
        f"recurrence the trained model gets {100 * recipe['test_recurrent']:.2f} % right, as a convolution "
        f"{100 * recipe['test']:.2f} %.\n",
        "starts": table(("", "parameters", "seed 0", "seed 1", "seed 2", "mean"), starts),
        "paired": paired(),
        "listops": table(
            ("", "parameters", "accuracy, 95 % interval", "1–16 tokens", "17–64", "65 and more", "seconds"),
            listops,
        ),
        "scaling": scaling(),
    }


def paired() -> str:
    """LegS less another start, seed by seed: the mean and its 95 % interval by Student's t."""
    legs = {r["seed"]: r["test"] for r in fashion(FASHION["LegS"])}
    lines = []
    for name, settings in FASHION.items():
        gaps = [legs[r["seed"]] - r["test"] for r in fashion(settings) if r["seed"] in legs]
        if name == "LegS" or len(gaps) < 2:
            continue
        half = float(t.ppf(0.975, len(gaps) - 1)) * stdev(gaps) / len(gaps) ** 0.5
        low, high = (f"{100 * end:+.1f}" for end in (mean(gaps) - half, mean(gaps) + half))
        ahead = sum(gap > 0 for gap in gaps)
        lines.append(
            (name, len(gaps), f"{100 * mean(gaps):+.2f} ({low} to {high})", f"{ahead} of {len(gaps)}")
        )
    return table(("LegS less", "seeds", "points, 95 % interval", "LegS ahead in"), lines)


def scaling() -> str:
    arms = ("S4D", "S4D, kernel alone", "GRU", "attention", "S4D, 100 recurrent steps")
    found = rows("s4d_scaling", "benchmarks")
    lines = []
    for length in (1024, 4096, 16_384, 65_536):
        at = {r["arm"]: r for r in found if r.get("length") == length}
        cells = []
        for arm in arms:
            ratio = f" ({at[arm]['x S4D']:.1f} ×)" if arm in ("GRU", "attention") and arm in at else ""
            cells.append(f"{at[arm]['ms']:,.1f}{ratio}" if arm in at else "not run")
        lines.append((f"{length:,}", *cells))
    fits = {r["arm"]: r for r in found if "exponent in L log L" in r}
    exponents = (f"{fits[arm]['exponent in L log L']:.2f} ({fits[arm]['last doubling']:.2f})" for arm in arms)
    lines.append(("exponent of L log L (last doubling)", *exponents))
    return table(
        (
            "length",
            "S4D",
            "its kernel alone",
            "GRU",
            "attention (causal, 4 heads)",
            "100 steps of the recurrence",
        ),
        lines,
    )
