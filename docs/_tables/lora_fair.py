"""LoRA-FAIR and its peers: the algebra of its start, and the strategies on data."""

from __future__ import annotations

from statistics import mean, stdev

from _rows import Blocks, Row, machine, result, rows, short, table


def blocks() -> Blocks:
    found = result("lora-fair")
    algebra = [row for row in found["rows"] if "data" not in row]
    lines = [(row["arm"], f"{row['error']:.4f}", f"{row['cosine']:.4f}") for row in algebra]
    head = ("data", "strategy", "seeds", "score", "against FedIT", "bias", "error", "MB down")
    trained = [row for row in found["rows"] if "data" in row]
    places = dict.fromkeys((row["data"], row["arm"]) for row in trained)
    return {
        "algebra": table(("", "error", "cosine"), lines),
        "data": table(head, [(*place, *_line(*place)) for place in places]) + "\n" + machine(found),
    }


def _line(data: str, arm: str) -> tuple[str, ...]:
    found: list[Row] = rows("lora-fair", data=data, arm=arm)
    base = {row["seed"]: row["score"] for row in rows("lora-fair", data=data, arm="FedIT")}
    gaps = [row["score"] - base[row["seed"]] for row in found if row["seed"] in base]
    gap = f"{mean(gaps):+.4f}" if gaps and arm != "FedIT" else ""
    if gap and len(gaps) > 1:
        gap += f" ± {stdev(gaps) / len(gaps) ** 0.5:.4f}"
    bias, error = (mean(row[key][-1] for row in found) for key in ("bias", "error"))
    return (
        str(len(found)),
        f"{mean(row['score'] for row in found):.4f}",
        gap,
        short(bias),
        short(error),
        f"{mean(row['bytes_down'] for row in found) / 1e6:.1f}",
    )
