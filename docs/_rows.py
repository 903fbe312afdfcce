"""Rows of benchmarks/results and evidence/results, and how their numbers are written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]
Blocks = dict[str, str]


def between(text: str, mark: str, new: str) -> str:
    """``text`` with the lines between the lines that hold ``mark``:begin and ``mark``:end replaced by ``new``."""
    pattern = re.compile(
        rf"(^[^\n]*[ #]{mark}:begin[^\n]*\n).*?(^[^\n]*[ #]{mark}:end)", re.DOTALL | re.MULTILINE
    )
    text, found = pattern.subn(lambda match: match[1] + new + match[2], text)
    if found != 1:
        raise SystemExit(f"marks {mark}:begin … {mark}:end: found {found} times, should be once")
    return text


@cache
def result(name: str, room: str = "evidence") -> Any:
    """What a script kept: machine and rows."""
    return json.loads((ROOT / room / "results" / f"{name}.json").read_text("utf-8"))


def rows(slug: str, room: str = "evidence", **wanted: Any) -> list[Row]:
    """The rows in which these columns have these values."""
    return [row for row in result(slug, room)["rows"] if wanted.items() <= row.items()]


def row(slug: str, room: str = "evidence", **wanted: Any) -> Row:
    """The one row in which these columns have these values."""
    (found,) = rows(slug, room, **wanted)
    return found


def table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    shown = [f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *lines)]
    return "\n".join(shown) + "\n"


def difference(r: Row, word: str, digits: int, scale: float = 1) -> str:
    """To another arm, with its interval: the columns ``to_<word>``, ``to_<word>_low`` and ``to_<word>_high``."""
    if r[f"to_{word}"] is None:
        return "–"
    value, low, high = (signed(scale * r[f"to_{word}{end}"], digits) for end in ("", "_low", "_high"))
    return f"{value} ({low} to {high})"


def share(r: Row, name: str = "kept") -> str:
    """What is kept of another arm's score, in per cent, with its interval."""
    value, low, high = (round(100 * r[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value} % ({low} to {high})"


def number(value: float | None, form: str = ",.0f", unit: str = "") -> str:
    return "–" if value is None else format(value, form) + unit


def tried(found: Iterable[Row], score: Callable[[Row], float | None]) -> str:
    """Learning rates, and what each gave."""
    runs = sorted(found, key=lambda r: r["lr"])
    return ", ".join(f"{r['lr']:.2g}: {number(score(r), '.3f')}" for r in runs)


def advice(found: Row) -> str:
    """What a comparison's page says, as a quotation."""
    (told,) = (r["advice"] for r in found["rows"] if "advice" in r)
    return "".join(f"> {line}\n" for line in told)


def listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def short(x: float) -> str:
    """Two digits: 0.29, 4.3e-2, 3.7e-7."""
    if x >= 0.1:
        return f"{x:.2f}"
    digits, power = f"{x:.1e}".split("e")
    return f"{digits}e{int(power)}"


def signed(x: float, digits: int = 2) -> str:
    """With a minus sign as it is printed."""
    return f"{x:.{digits}f}".replace("-", "−")


def third(x: float) -> str:
    """Three decimals without the leading zero: .349, 7.996."""
    return f"{x:.3f}".removeprefix("0")


def percent(x: float) -> str:
    return f"{100 * x:.1f}"


def machine(found: dict[str, Any]) -> str:
    """Where rows were measured."""
    m = found["machine"]
    return f"On {m['cpu']}, {m['threads']} of {m['cores']} cores, torch {m['torch']}, PEFT {m['peft']}.\n"
