"""The picture of an intrinsic dimension: score against dimensions, with the mark that is to be reached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from eckart.jobs.charts import COLOURS, SOFT, alt, svg
from eckart.jobs.compare.leaderboard import metric_named

WIDTH, HEIGHT = 520, 300


def draw(found: Mapping[str, Any]) -> str:
    """The curve on a logarithmic axis, with intervals; dashed the mark, dotted full training and the head alone.

    Args:
        found: as `eckart.jobs.measure.dimension.measure_dimension` returns it.
    """
    metric = metric_named(found["metric"])
    known = [row for row in found["curve"] if row["d"] and math.isfinite(row["score"])]
    points = [
        {"d": row["d"]} | {name: metric.scale * row[name] for name in ("score", "low", "high")}
        for row in known
    ]
    lines = {f"{found['share']:.0%} of full": "mark", "full training": "full", "head alone": "head"}
    levels = [
        {"name": name, "y": metric.scale * found[key]}
        for name, key in lines.items()
        if math.isfinite(found[key])
    ]
    title = f"{metric.name}{f', {metric.suffix}' if metric.suffix else ''}"
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("d:Q", title="dimensions", scale=alt.Scale(type="log"), axis=alt.Axis(format=",.0f"))
    )
    score = alt.Y("score:Q", title=title, scale=alt.Scale(zero=False))
    rules = alt.Chart(alt.Data(values=levels)).mark_rule(strokeDash=[5, 4], color=SOFT)
    names = alt.Chart(alt.Data(values=levels)).mark_text(align="left", dx=4, dy=-6, color=SOFT)
    left = alt.value(0)
    chart = alt.layer(
        rules.encode(y="y:Q"),
        names.encode(x=left, y="y:Q", text="name:N"),
        base.mark_rule(color=COLOURS[0]).encode(y=alt.Y("low:Q", title=title), y2="high:Q"),
        base.mark_line(color=COLOURS[0]).encode(y=score),
        base.mark_point(color=COLOURS[0], filled=True, size=40, opacity=1).encode(y=score),
    ).properties(
        width=WIDTH, height=HEIGHT, title={"text": "Intrinsic dimension", "subtitle": found["sentence"]}
    )
    return svg(chart, f"Intrinsic dimension: {found['sentence']}")
