"""The picture of a measurement: one panel for each metric, one line for each model from its embeddings to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eckart.jobs.charts import alt, svg

ACROSS, SPAN, RISE = 3, 230, 150
PLACES = "datum.value == 0 ? 'embeddings' : datum.value == 1 ? 'last' : 'middle'"


def draw(data: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Means with their 95% intervals over the relative depth of the layers.

    Args:
        data: name of the data set.
        rows: one for each model, metric and layer: ``model``, the words that the legend has for it; ``metric``;
            ``depth`` from 0 to 1; ``mean`` and half the width of its interval, ``ci``, None where unknown.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    metrics = dict.fromkeys(row["metric"] for row in rows)
    panels = [_panel([row for row in rows if row["metric"] == metric], metric, models) for metric in metrics]
    head, words = f"Hidden states over {data}", "Mean over the texts, with its 95 % interval"
    chart = alt.concat(*panels, columns=ACROSS, spacing=28).properties(
        title={"text": head, "subtitle": words}
    )
    return svg(chart, f"{head}: {words}, from the embeddings to the last layer")


def _panel(rows: Sequence[Mapping[str, Any]], metric: str, models: list[str]) -> Any:
    legend = alt.Legend(title=None, orient="top", direction="vertical", columns=1)
    scale = alt.Scale(domain=models)
    places = alt.Axis(values=[0, 0.5, 1], labelExpr=PLACES, title=None)
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        x=alt.X("depth:Q", axis=places, scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("model:N", scale=scale, legend=legend),
    )
    mean = alt.Y("mean:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
    interval = base.transform_filter("datum.ci > 0").transform_calculate(
        low="datum.mean - datum.ci", high="datum.mean + datum.ci"
    )
    marks = base.mark_point(size=22, filled=True, opacity=1).encode(
        y=mean, shape=alt.Shape("model:N", scale=scale, legend=legend)
    )
    return alt.layer(
        base.mark_line(strokeWidth=1.4).encode(y=mean),
        interval.mark_rule().encode(y=alt.Y("low:Q", title=None), y2="high:Q"),
        marks,
    ).properties(width=SPAN, height=RISE, title={"text": metric.replace("_", " "), "fontSize": 12})
