"""Structured pretraining at equal size: scores, what they tell, curves, and the rates that were tried."""

from __future__ import annotations

from itertools import groupby
from statistics import mean

from _rows import Blocks, Row, listed, machine, result, rows, signed, table, tried

SLUG = "structured-pretraining"
INTERVAL = "half of the 95 % interval"


def blocks() -> Blocks:
    runs = rows(SLUG, part="run")
    own = {arm: [r for r in runs if r["arm"] == arm] for arm in dict.fromkeys(r["arm"] for r in runs)}
    pairs = {(r["arm"], r["against"]): r for r in rows(SLUG, part="paired")}
    compared = {against for _, against in pairs}
    baselines = [arm for arm in own if arm in compared]
    scores, curves, rates = [], [], []
    for arm, found in own.items():
        first = found[0]
        gaps = (_gap(pairs.get((arm, against))) for against in baselines)
        seconds = f"{mean(r['seconds'] for r in found):.0f}"
        test = f"{mean(r['test'] for r in found):.3f}"
        scores.append((arm, f"{first['parameters']:,}", _rates(first), test, *gaps, seconds))
        means = map(mean, zip(*(r["validation"] for r in found), strict=True))
        curves.append((arm, *(f"{value:.3f}" for value in means)))
        for share, trials in groupby(rows(SLUG, part="rates", arm=arm), key=_share):
            name = arm if share is None else f"{arm}, AdamW's share {share:.2g}"
            rates.append((name, tried(trials, lambda r: r["validation"])))
    against = (f"minus that of {name}" for name in baselines)
    head = ("arm", "parameters", "rate", "test loss", *against, "seconds of a run")
    length = f"{runs[0]['steps'][-1]} updates, rates tried for {rows(SLUG, part='rates')[0]['updates']}.\n"
    return {
        "scores": table(head, scores) + f"\n{length}" + machine(result(SLUG)),
        "told": _told(baselines[0], own, pairs),
        "curves": table(("arm", *(str(step) for step in runs[0]["steps"])), curves),
        "rates": table(("arm", "rate: validation loss"), rates),
    }


def _share(row: Row) -> float | None:
    """Of the rate, at which AdamW moves what is no hidden matrix, where it was tuned."""
    found: float | None = row["optimizer_options"].get("adamw_scale")
    return found


def _rates(run: Row) -> str:
    lr, share = run["lr"], _share(run)
    return f"{lr:.2g}" if share is None else f"{lr:.2g}, AdamW's {lr * share:.2g}"


def _gap(pair: Row | None) -> str:
    return "–" if pair is None else f"{signed(pair['difference'], 3)} ± {pair[INTERVAL]:.3f}"


def _told(against: str, own: dict[str, list[Row]], pairs: dict[tuple[str, str], Row]) -> str:
    """Which arms are told apart from the first, and how the optimisers of all weights stand to AdamW."""
    groups: dict[str, list[str]] = {"lower": [], "higher": [], "not told apart": []}
    for arm in own:
        if (pair := pairs.get((arm, against))) is not None:
            apart = abs(pair["difference"]) > pair[INTERVAL]
            groups[("lower" if pair["difference"] < 0 else "higher") if apart else "not told apart"].append(
                arm
            )
    lines = [f"- {name}: {listed(arms) or 'none'}" for name, arms in groups.items()]
    base = mean(r["test"] for r in own[against])
    for arm, found in own.items():
        if found[0]["method"] == "full" and found[0]["optimizer"] != "adamw":
            gap, half = (100 * pairs[arm, against][key] / base for key in ("difference", INTERVAL))
            bar = "within" if gap + half <= 2 else "above" if gap > 2 else "in the mean alone within"
            lines.append(
                f"- {arm}: {signed(gap, 1)} ± {half:.1f} % of AdamW's loss, {bar} the 2 % that were aimed at"
            )
    return f"Against {against}, by the intervals:\n\n" + "\n".join(lines) + "\n"
