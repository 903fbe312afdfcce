"""The line charts of docs/evidence, drawn from rows that are kept under results/figures.

python benchmarks/_figure.py     draws all of them again
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eckart.files import atomic_write
from eckart.jobs.charts import alt, svg

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "benchmarks" / "results" / "figures"
FIGURES = ROOT / "docs" / "evidence" / "figures"
WIDTH, HEIGHT, FEW = 460, 320, 24


def line_chart(
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    log_x: bool = False,
    log_y: bool = True,
) -> None:
    """Keep the series of (x, y) under a name, to six digits, and draw them."""
    points = {
        label: [[float(f"{value:.6g}") for value in point] for point in line]
        for label, line in series.items()
    }
    kept = {"title": title, "x": x_label, "y": y_label, "log_x": log_x, "log_y": log_y, "series": points}
    path = ROWS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(kept, ensure_ascii=False) + "\n", encoding="utf-8")
    with atomic_write(FIGURES / f"{name}.svg") as temporary:
        temporary.write_text(draw(kept), encoding="utf-8")


def draw(kept: Mapping[str, Any]) -> str:
    """The chart of one file of rows; points that a logarithm cannot show are left out."""
    rows = [
        {"series": name, "at": at, "x": x, "y": y, "few": len(points) <= FEW}
        for name, points in kept["series"].items()
        for at, (x, y) in enumerate(points)
        if (x > 0 or not kept["log_x"]) and (y > 0 or not kept["log_y"]) and math.isfinite(y)
    ]
    names = alt.Scale(domain=list(kept["series"]))
    legend = alt.Legend(title=None)
    lines = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("x:Q", **_axis(kept["x"], kept["log_x"], [row["x"] for row in rows])),
        y=alt.Y("y:Q", **_axis(kept["y"], kept["log_y"], [row["y"] for row in rows])),
        color=alt.Color("series:N", scale=names, legend=legend),
    )
    marks = lines.mark_point(size=32, filled=True, opacity=1).transform_filter("datum.few")
    chart = alt.layer(
        lines.mark_line(strokeWidth=1.8).encode(order="at:Q"),
        marks.encode(shape=alt.Shape("series:N", scale=names, legend=legend)),
    )
    title = f"{kept['title']}: {kept['y']} against {kept['x']}, {', '.join(kept['series'])}"
    return svg(chart.properties(width=WIDTH, height=HEIGHT, title=kept["title"]), title)


def _axis(title: str, log: bool, values: Sequence[float]) -> dict[str, Any]:
    decades = int(math.log10(max(values) / min(values))) if log else 6
    axis = alt.Axis(title=title, labelExpr="format(datum.value, '~g')", tickCount=max(2, min(decades, 6)))
    return {"axis": axis, "scale": alt.Scale(type="log", nice=False) if log else alt.Scale(zero=False)}


if __name__ == "__main__":
    for path in sorted(ROWS.glob("*.json")):
        target = FIGURES / f"{path.stem}.svg"
        target.write_text(draw(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
        print(target)
