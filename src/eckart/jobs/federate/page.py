"""The report of a run: two curves and the tables, one HTML file without scripts or links to other hosts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from eckart.jobs._svg import GRID, circle, document, line, polyline, text

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .7rem;text-align:right;"
    "border-bottom:1px solid #e6eaef}th{text-align:right;font-weight:600}"
)
WIDTH, RISE, LEFT = 460, 180, 64
ACCENT = "#0b7285"


def page(title: str, metric: str, rounds: Sequence[dict[str, Any]], clients: Sequence[dict[str, Any]]) -> str:
    """The whole page.

    Args:
        title: heading.
        metric: name of the score.
        rounds, clients: rows of the two tables.
    """
    curves = ""
    if rounds:
        curves = _curve(rounds, "score", f"{metric.replace('_', ' ')} on the validation split")
        curves += _curve(rounds, "error", "error of the aggregation, relative")
    refused = [row for row in clients if row["refused"]]
    parts = [f"<h1>{escape(title)}</h1>", curves, "<h2>Rounds</h2>", _table(rounds)]
    if refused:
        parts += ["<h2>Updates that were not used</h2>", _table(refused, ("round", "client", "refused"))]
    latest = [row for row in clients if rounds and row["round"] == rounds[-1]["round"]]
    parts += ["<h2>Clients of the last round</h2>", _table(latest)]
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def _curve(rows: Sequence[dict[str, Any]], column: str, title: str) -> str:
    values = [float(row[column]) for row in rows]
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0

    def at(place: int, value: float) -> tuple[float, float]:
        return LEFT + WIDTH * place / max(len(values) - 1, 1), 40 + RISE * (1 - (value - low) / span)

    points = [at(i, value) for i, value in enumerate(values)]
    parts = [text(LEFT, 22, title, weight=600)]
    for value in (low, low + span / 2, low + span):
        y = at(0, value)[1]
        parts += [
            line(LEFT, y, LEFT + WIDTH, y, GRID),
            text(LEFT - 8, y + 4, f"{value:.4g}", anchor="end", size=11),
        ]
    parts += [polyline(points, ACCENT, title, width=2), *(circle(x, y, stroke=ACCENT) for x, y in points)]
    parts += [text(LEFT, RISE + 62, f"round {rows[0]['round']}", size=11)]
    parts += [text(LEFT + WIDTH, RISE + 62, f"round {rows[-1]['round']}", size=11, anchor="end")]
    return document(LEFT + WIDTH + 24, RISE + 76, parts)


def _table(rows: Sequence[dict[str, Any]], columns: Iterable[str] | None = None) -> str:
    if not rows:
        return "<p>None yet.</p>"
    names = list(columns or rows[0])
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_shown(row.get(name)))}</td>" for name in names) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{int(value):,}" if isinstance(value, int | float) else str(value)
