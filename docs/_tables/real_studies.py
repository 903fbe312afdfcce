"""Studies drawn from real runs, and what the methods score over all of them."""

from __future__ import annotations

from _rows import Blocks, difference, machine, percent, result, rows, table

DATA = {"docstrings": "the built-in docstrings", "sst2": "SST-2"}
RULES = {
    "meet": "grid, intervals that do not meet",
    "paired": "grid, paired",
    "short": "race, three quarters of the steps",
    "long": "race, at most as many steps",
    "race": "race",
}
GRIDS = ("meet", "paired")


def board(data: str) -> str:
    head = ("method", "accuracy", "to the best, in points", "trained", "learning rate", "ruled out")
    lines = [
        (
            r["label"],
            f"{percent(r['score'])} %",
            difference(r, "best", 1, 100),
            f"{r['trained_parameters']:,.0f}",
            f"{r['lr']:g}",
            "yes" if r["ruled_out"] else "",
        )
        for r in rows("real-studies", part="scores", data=data)
    ]
    return table(head, lines)


def studies() -> str:
    found = rows("real-studies", part="studies")
    lines = [
        (
            DATA[r["data"]],
            RULES[r["rule"]],
            ("" if r["rule"] in GRIDS else "at most ") + str(r["seeds"]),
            f"{r['steps']:,.0f}",
            f"{percent(r['use'])} %",
            f"{percent(r['wrong use'])} %",
            f"{percent(r['not alone'])} %",
            f"{percent(r['not alone of all'])} %",
            f"{r['set']:.1f}",
            f"{percent(r['best lost'])} %",
        )
        for r in sorted(
            found, key=lambda r: (list(DATA).index(r["data"]), r["rule"] not in GRIDS, r["seeds"])
        )
    ]
    head = (
        "data",
        "rule",
        "seeds",
        "training steps",
        "names one",
        "wrongly",
        "not alone",
        "not alone of all",
        "methods left",
        "the best lost",
    )
    return table(head, lines)


def blocks() -> Blocks:
    names = {r["data"] for r in rows("real-studies", part="scores")}
    return {
        "studies": studies() + "\n" + machine(result("real-studies")),
        **{f"scores-{data}": board(data) for data in DATA if data in names},
    }
