"""The pictures of a measurement: metrics from the embeddings to the last layer, and how alike the layers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eckart.jobs.charts import alt, svg
from eckart.jobs.measure.likeness import Likeness

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


def draw_likeness(data: str, pairs: Sequence[Likeness]) -> str:
    """Heat maps of CKA, one for each model and each pair of models, the first layer at the bottom left.

    Args:
        data: name of the data set.
        pairs: what `likenesses` gave.
    """
    head, words = f"Layers over {data}", "Linear CKA of the mean states of the texts, 0 the embeddings"
    chart = alt.concat(*map(_map, pairs), columns=ACROSS, spacing=28).properties(
        title={"text": head, "subtitle": words}
    )
    return svg(chart, f"{head}: {words}")


def _map(pair: Likeness) -> Any:
    place = {"sort": None, "axis": alt.Axis(labelAngle=0, labelOverlap=True, ticks=False, titleLimit=SPAN)}
    return (
        alt.Chart(alt.Data(values=pair.rows()))
        .mark_rect()
        .encode(
            x=alt.X("other_layer:O", title=pair.other, **place),
            y=alt.Y("layer:O", title=pair.model, scale=alt.Scale(reverse=True), **place),
            color=alt.Color(
                "cka:Q",
                scale=alt.Scale(domain=[0, 1], scheme="blues", clamp=True),
                legend=alt.Legend(title="CKA"),
            ),
        )
        .properties(width=SPAN, height=SPAN)
    )


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
