"""Which changes of the source no test notices."""

from __future__ import annotations

from _rows import Blocks, result, table


def blocks() -> Blocks:
    rooms = result("mutants", "benchmarks")
    lines = [
        (
            room,
            f"{r['places']:,}",
            r["sample"],
            f"{r['killed before']} ({r['killed before'] / r['sample']:.0%})",
            f"{r['killed']} ({r['killed'] / r['sample']:.0%})",
        )
        for room, r in rooms.items()
    ]
    alive = "".join(f"- `{told}`\n" for r in rooms.values() for told in r["survived"])
    fresh = "".join(
        f"Of {r['fresh']['sample']} fresh places of `{room}` {r['fresh']['killed']} were noticed; not "
        f"{', '.join(f'`{told}`' for told in r['fresh']['survived'])}.\n"
        for room, r in rooms.items()
        if "fresh" in r
    )
    return {
        "fresh": fresh,
        "mutants": table(("room", "places", "sample", "noticed before", "noticed now"), lines),
        "survivors": alive,
    }
