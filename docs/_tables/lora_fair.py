"""LoRA-FAIR and its peers: the algebra of its start, and the strategies on data."""

from __future__ import annotations

from statistics import mean

from _rows import Blocks, Row, listed, machine, percent, result, rows, short, table

FEDIT, RIDGE = "FedIT", "LoRA-FAIR (ridge)"


def blocks() -> Blocks:
    found = result("lora-fair")
    algebra = [row for row in found["rows"] if "cosine" in row]
    lines = [(row["arm"], f"{row['error']:.4f}", f"{row['cosine']:.4f}") for row in algebra]
    head = ("data", "strategy", "score", "against FedIT", "at FedIT's bytes", "error", "MB sent", "server")
    places = dict.fromkeys((row["data"], row["arm"]) for row in chosen())
    return {
        "algebra": table(("", "error", "cosine"), lines),
        "data": table(head, [(*place, *_line(*place)) for place in places]) + "\n" + machine(found),
        "rounds": _by_round(),
        "rates": table(("data", "strategy", "rates and their scores"), [(*p, _rates(*p)) for p in places]),
    }


def chosen(**wanted: object) -> list[Row]:
    """The runs at each arm's own learning rate."""
    return rows("lora-fair", chosen=True, **wanted)


def paired(data: str, arm: str) -> Row | None:
    """An arm against FedIT."""
    return next(iter(rows("lora-fair", part="paired", data=data, arm=arm)), None)


def points(row: Row) -> str:
    """A difference with its interval, in points."""
    numbers = (f"{100 * row[name]:+.1f}".replace("-", "−") for name in ("difference", "low", "high"))
    return "{} ({} to {})".format(*numbers)


def _line(data: str, arm: str) -> tuple[str, ...]:
    found, gap = chosen(data=data, arm=arm), paired(data, arm)
    rounds = found[0]["rounds at FedIT's bytes"]
    early = percent(mean(row["score at FedIT's bytes"] for row in found))
    return (
        percent(mean(row["score"] for row in found)),
        points(gap) if gap else "",
        early if rounds == len(found[0]["bytes"]) else f"{early} ({rounds} rounds)",
        short(mean(row["error"][-1] for row in found)),
        f"{mean(sum(row['bytes']) for row in found) / 1e6:.0f}",
        f"{percent(mean(row['server_seconds'] / row['cpu_seconds'] for row in found))} %",
    )


def _by_round() -> str:
    lines = []
    for data in dict.fromkeys(row["data"] for row in chosen()):
        for arm, key in ((FEDIT, "bias"), (RIDGE, "bias"), (RIDGE, "error")):
            if found := [row[key] for row in chosen(data=data, arm=arm)]:
                lines.append(
                    (data, arm, key, *(f"{mean(values):.4f}" for values in zip(*found, strict=True)))
                )
    return table(("data", "run", "", *(f"round {i + 1}" for i in range(len(lines[0]) - 3))), lines)


def _rates(data: str, arm: str) -> str:
    tried = sorted(rows("lora-fair", data=data, arm=arm, seed=0), key=lambda row: row["lr"])
    marks = (("**" if row["chosen"] else "", row) for row in tried)
    return listed(f"{m}{row['lr']:.1g}: {percent(mean(row['validation']))}{m}" for m, row in marks)
