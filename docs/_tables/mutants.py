"""Which changes of the source no test notices."""

from __future__ import annotations

from _rows import Blocks, Row, result, table


def blocks() -> Blocks:
    rooms: dict[str, list[Row]] = result("mutants", "benchmarks")
    runs = [(room, run) for room, found in rooms.items() for run in found]
    same = {line: reason for _, run in runs for line, reason in run.get("equivalent", {}).items()}
    alive = [line for _, run in runs for line in run["survived"] if line not in same]
    return {
        "mutants": table(
            ("room", "seed", "places", "sample", "change nothing", "noticed before", "noticed now"),
            [_line(room, run) for room, run in runs],
        ),
        "equivalent": "".join(f"- `{line}`: {reason}.\n" for line, reason in same.items()),
        "survivors": "".join(f"- `{line}`\n" for line in alive) or "None.\n",
    }


def _line(room: str, run: Row) -> tuple[object, ...]:
    same = len(run.get("equivalent", {}))
    shares = [
        f"{run[name]} ({run[name] / (run['sample'] - same):.0%})" for name in ("killed before", "killed")
    ]
    return room, run["seed"], f"{run['places']:,}", run["sample"], same, *shares
