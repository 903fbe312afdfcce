"""How arms of a comparison are told apart, simulated."""

from __future__ import annotations

from _rows import Blocks, percent, row, rows, table

RULES = {
    "meet": "intervals that do not meet",
    "own": "paired, own variance",
    "pooled": "paired, pooled, Holm",
}
CASES = {
    "equal": "all equal",
    "ahead": "one ahead",
    "two tie": "two ahead, equal",
    "spread": "evenly spread over",
    "normal": "normal, of deviation",
}


def case(arms: str, points: float) -> str:
    return CASES[arms] + (f" {points:g} points" if points else "")


def blocks() -> Blocks:
    found = rows("paired-comparison", part="power")
    cases = list(dict.fromkeys((r["arms"], r["points"], r["seeds"]) for r in found))
    lines = []
    for arms, points, seeds in cases:
        three = [
            row("paired-comparison", part="power", arms=arms, points=points, seeds=seeds, rule=rule)
            for rule in RULES
        ]
        told = (f"{percent(r['use'])} / {percent(r['wrong use'])} / {r['set']:.1f}" for r in three)
        lines.append((case(arms, points), seeds, *told))
    covered = [
        (
            r["seeds"],
            f"{r['examples']:,}",
            "unequal" if r["unequal"] else "equal",
            f"{percent(r['one pair'])} %",
            f"{percent(r['all pairs'])} %",
        )
        for r in rows("paired-comparison", part="coverage")
    ]
    raced = [
        (
            case(r["arms"], r["points"]),
            r["rule"],
            f"{percent(r['wrong use'])} %",
            f"{r['set']:.1f}",
            f"{r['runs']:.1f}",
        )
        for r in rows("paired-comparison", part="race")
    ]
    tuned = [
        (
            case(r["arms"], r["points"]),
            r["rule"],
            ("at most " if r["rule"] == "race" else "") + str(r["seeds"]),
            f"{r['steps']:,.0f}",
            *(f"{percent(r[name])} %" for name in ("wrong use", "not alone", "not alone of all")),
            f"{r['set']:.1f}",
            f"{percent(r['best lost'])} %",
        )
        for r in rows("paired-comparison", part="tuned")
    ]
    head = (
        "ten arms",
        "rule",
        "seeds",
        "training steps",
        "wrongly",
        "not alone",
        "not alone of all",
        "arms left",
    )
    known, unknown = (row("paired-comparison", part="clusters", **{"groups known": k}) for k in (True, False))
    return {
        "power": table(("ten arms", "seeds", *RULES.values()), lines),
        "coverage": table(("seeds", "examples", "variances", "one pair", "all nine at once"), covered),
        "race": table(("ten arms", "rule", "wrong use", "arms left", "final runs"), raced),
        "tuned": table((*head, "the best lost"), tuned),
        "clusters": f"Where examples come in 98 groups that a method does alike on, the interval covers in "
        f"{percent(known['one pair'])} % of studies when the groups are known and in {percent(unknown['one pair'])} % "
        "when they are not.\n",
    }
