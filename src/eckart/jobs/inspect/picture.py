"""The picture of an inspection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eckart.jobs.charts import COLOURS, INK, alt, svg

SPAN, ROW, CURVES = 470, 18, 230
NAME = "length(datum.label) > 46 ? '…' + slice(datum.label, -45) : datum.label"
AXIS = "rank, as a share of min(rows, columns)"
LOW, MARK, *_ = COLOURS
PLAIN, WIDE = "#8a97a8", "#d3dae3"


def draw(
    model: str,
    energy: float,
    rows: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Sequence[tuple[float, float]]],
) -> str:
    """The energy curves of all weights, then one row per weight with its ranks, as a share of min(rows, columns).

    Args:
        model: its name.
        energy: the share that "nearly low-rank" is about.
        rows: of each weight, as ``spectra.csv`` has them.
        curves: of each weight, by name: (share of the rank, share of the energy), rising.
    """
    low, percent = sum(row["nearly_low_rank"] for row in rows), f"{100 * energy:g} %"
    words = (
        f"Nearly low-rank: {low} of {len(rows)} weights. Factors that hold {percent} of their energy need "
        "at most half the numbers."
    )
    chart = alt.vconcat(_curves(energy, rows, curves), _ranks(energy, rows), spacing=28)
    chart = chart.resolve_scale(color="independent")
    return svg(chart.properties(title={"text": f"Spectra of {model}", "subtitle": words}), words)


def _share(field: str, title: str | None) -> Any:
    axis = alt.Axis(format="%", tickCount=5, title=title)
    return alt.X(f"{field}:Q", axis=axis, scale=alt.Scale(domain=[0, 1]))


def _curves(
    energy: float, rows: Sequence[Mapping[str, Any]], curves: Mapping[str, Sequence[tuple[float, float]]]
) -> Any:
    points = [
        {"name": row["name"], "low": row["nearly_low_rank"], "share": share, "energy": held}
        for row in sorted(rows, key=lambda row: row["nearly_low_rank"])
        for share, held in curves[row["name"]]
    ]
    axis = alt.Axis(format="%", tickCount=5, title="energy held by the leading singular values")
    lines = (
        alt.Chart(alt.Data(values=points))
        .mark_line(strokeWidth=1.4)
        .encode(
            x=_share("share", AXIS),
            y=alt.Y("energy:Q", axis=axis, scale=alt.Scale(domain=[0, 1])),
            color=alt.when("datum.low").then(alt.value(LOW)).otherwise(alt.value(PLAIN)),
            opacity=alt.when("datum.low").then(alt.value(0.85)).otherwise(alt.value(0.45)),
            detail="name:N",
        )
    )
    level = alt.Chart(alt.Data(values=[{"energy": energy}])).encode(y="energy:Q")
    label = level.mark_text(align="left", dx=8, fill=MARK).encode(
        x=alt.value(SPAN), text=alt.Text("energy:Q", format=".3~%")
    )
    return alt.layer(lines, level.mark_rule(color=MARK, strokeDash=[5, 4]), label).properties(
        width=SPAN, height=CURVES
    )


def _ranks(energy: float, rows: Sequence[Mapping[str, Any]]) -> Any:
    held = f"rank_{100 * energy:g}"
    shown = [
        {
            "name": row["name"],
            "shape": f"{row['rows']} × {row['columns']}",
            "alpha": "–" if row["alpha"] is None else f"α {row['alpha']:.2f}",
            "kind": "nearly low-rank" if row["nearly_low_rank"] else f"{100 * energy:g} % of energy",
            **{key: row[key] / row["max_rank"] for key in ("rank_99", "effective_rank", "stable_rank")},
            "held": row[held] / row["max_rank"],
        }
        for row in rows
    ]
    kinds = {f"{100 * energy:g} % of energy": PLAIN, "nearly low-rank": LOW, "99 %": WIDE}
    kinds |= {"effective rank": MARK, "stable rank": INK}
    colour = alt.Scale(domain=list(kinds), range=list(kinds.values()))
    legend = alt.Legend(title="Ranks of each weight", orient="top", symbolType="square", offset=4)
    names = alt.Axis(labelExpr=NAME, labelLimit=0, labelFontSize=11, domain=False, ticks=False)
    base = alt.Chart(alt.Data(values=shown)).encode(y=alt.Y("name:N", sort=None, title=None, axis=names))

    def mark(chart: Any, field: str, kind: Any) -> Any:
        return chart.encode(x=_share(field, AXIS), color=kind)

    def beside(field: str, place: int, align: str) -> Any:
        return base.mark_text(align=align, fontSize=11).encode(x=alt.value(place), text=f"{field}:N")

    return alt.layer(
        mark(base.mark_bar(height=10), "rank_99", alt.datum("99 %")),
        mark(base.mark_bar(height=10), "held", alt.Color("kind:N", scale=colour, legend=legend)),
        mark(base.mark_point(size=36, opacity=1), "stable_rank", alt.datum("stable rank")),
        mark(
            base.mark_tick(thickness=2, size=ROW - 2, opacity=1),
            "effective_rank",
            alt.datum("effective rank"),
        ),
        beside("shape", SPAN + 10, "left"),
        beside("alpha", SPAN + 150, "right"),
    ).properties(width=SPAN, height=alt.Step(ROW))
