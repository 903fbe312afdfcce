"""The report of a run: its curves and tables, one HTML file without scripts or links to other hosts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from eckart.escapes import html

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .7rem;text-align:right;"
    "border-bottom:1px solid #e6eaef}th{font-weight:600}"
)
Rows = Sequence[dict[str, Any]]


def page(title: str, metric: str, rounds: Rows, clients: Rows) -> str:
    """The whole page.

    Args:
        title: heading.
        metric: name of the score.
        rounds, clients: rows of the two tables.
    """
    refused = [row for row in clients if row["refused"]]
    latest = [row for row in clients if rounds and row["round"] == rounds[-1]["round"]]
    parts = [f"<h1>{html(title)}</h1>", _curves(rounds, metric) if rounds else ""]
    parts += ["<h2>Rounds</h2>", _table(rounds)]
    if refused:
        parts += ["<h2>Updates that were not used</h2>", _table(refused, ("round", "client", "refused"))]
    parts += ["<h2>Clients of the last round</h2>", _table(latest)]
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html(title)}</title>'
        f"<style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def _curves(rounds: Rows, metric: str) -> str:
    """Score and aggregation error over the rounds, side by side."""
    from eckart.jobs.charts import alt, svg

    names = {
        "score": f"{metric.replace('_', ' ')} on the validation split",
        "error": "relative error of the aggregation",
    }
    panels = []
    for column, name in names.items():
        values = [{"round": row["round"], "value": row[column]} for row in rounds]
        axis = alt.Axis(
            values=[row["round"] for row in rounds] if len(rounds) < 12 else alt.Undefined, format="d"
        )
        panels.append(
            alt.Chart(alt.Data(values=values))
            .mark_line(point=True)
            .encode(
                x=alt.X("round:Q", title="round", axis=axis, scale=alt.Scale(zero=False)),
                y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
            )
            .properties(width=360, height=180, title={"text": name, "fontSize": 12})
        )
    return svg(alt.concat(*panels, columns=2, spacing=32), "Score and aggregation error over the rounds")


def _table(rows: Rows, columns: Iterable[str] | None = None) -> str:
    if not rows:
        return "<p>None yet.</p>"
    names = list(columns or rows[0])
    head = "".join(f"<th>{html(name.replace('_', ' '))}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{html(_shown(row.get(name)))}</td>" for name in names) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{int(value):,}" if isinstance(value, int | float) else str(value)
