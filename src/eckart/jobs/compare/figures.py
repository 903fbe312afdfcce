"""The charts of the report page in Vega-Lite; its script gives them their rows and, to the front, its two axes."""

from __future__ import annotations

from typing import Any

from eckart.jobs.charts import alt, theme
from eckart.jobs.compare.leaderboard import QUANTITIES, Metric

ACCENT, INK, SOFT, LINE, GRID, PAPER = (
    f"var(--{name})" for name in ("accent", "ink", "soft", "line", "grid", "paper")
)
ZOOM = "wheel![event.ctrlKey || event.metaKey]"
DRAG = "[pointerdown[event.pointerType === 'mouse'], window:pointerup] > window:pointermove!"
"""Without a key the wheel scrolls the page, and so does a finger."""

LABELS = {
    "count": "format(datum.value, '~s')",
    "bytes": "format(datum.value, '~s') + 'B'",
    "megabytes": "format(datum.value * 1e6, '~s') + 'B'",
    "ratio": "format(datum.value, '~g') + '×'",
    "seconds": "datum.value < 120 ? format(datum.value, '~g') + ' s' : format(datum.value / 60, '.3~g') + ' min'",
}
"""How the ticks of each kind of quantity are written."""


def figures(metric: Metric, greater: bool, scale: tuple[float, float]) -> dict[str, Any]:
    """Every chart of the page, and the theme that its style sheet colours.

    Args:
        metric: of the scores.
        greater: whether a larger score is better.
        scale: the ends of the scale of scores on the leaderboard.
    """
    score = f"format(datum.value * {metric.scale:g}, '.6~g')"
    axes = {key: (item.label, LABELS[item.kind]) for key, item in QUANTITIES.items()}
    axes["score"] = (
        f"{metric.name} ({'higher' if greater else 'lower'} is better)",
        f"{score} + '{metric.suffix}'",
    )
    return {
        "config": theme(ink=INK, soft=SOFT, line=LINE, grid=GRID, paper=PAPER),
        "interval": interval(scale).to_dict(),
        "ticks": ticks(scale, score).to_dict(),
        "pareto": pareto().to_dict(),
        "axes": {key: _axis(*words) for key, words in axes.items()},
        "curves": curves().to_dict(),
        "rates": rates(score, metric.name).to_dict(),
    }


def _axis(title: str, labels: str) -> dict[str, Any]:
    return {
        "type": "quantitative",
        "axis": {"title": title, "labelExpr": labels, "tickCount": 6, "labelSeparation": 6},
    }


def _scores(scale: tuple[float, float], **axis: Any) -> Any:
    domain = alt.Scale(domain=list(scale), nice=False, zero=False)
    return alt.X(
        "score:Q", scale=domain, axis=alt.Axis(tickCount=4, domain=False, ticks=False, title=None, **axis)
    )


def interval(scale: tuple[float, float]) -> Any:
    """A score with its interval in a row of the leaderboard; one outside the scale is an arrow at its end."""
    middle = alt.value(alt.expr("height / 2"))
    base = alt.Chart(alt.NamedData("rows")).encode(y=middle)
    known = base.transform_filter("datum.outside === 0 && isValid(datum.low)")
    cap = {"thickness": 1.5, "size": 8, "color": INK, "opacity": 0.75, "orient": "vertical"}
    arrow = {"fill": SOFT, "fontSize": 14, "baseline": "middle"}
    layers = [
        known.mark_rule(strokeWidth=1.5, color=INK, opacity=0.75).encode(x="low:Q", x2="high:Q"),
        known.mark_tick(**cap).encode(x="low:Q"),
        known.mark_tick(**cap).encode(x="high:Q"),
        base.mark_text(text="◂", align="left", **arrow)
        .transform_filter("datum.outside < 0")
        .encode(x=alt.value(0)),
        base.mark_text(text="▸", align="right", **arrow)
        .transform_filter("datum.outside > 0")
        .encode(x=alt.value("width")),
        base.mark_point(size=79, opacity=1, strokeWidth=1.75)
        .transform_filter("datum.outside === 0")
        .encode(
            x=_scores(scale, labels=False),
            fill=alt.when("datum.near").then(alt.value(ACCENT)).otherwise(alt.value(PAPER)),
            stroke=alt.when("datum.near").then(alt.value(PAPER)).otherwise(alt.value(INK)),
        )
        .properties(name="dot"),
    ]
    return _bare(alt.layer(*layers))


def ticks(scale: tuple[float, float], labels: str) -> Any:
    """The numbers above the intervals."""
    axis = {
        "orient": "top",
        "labelExpr": labels,
        "labelFontSize": 11,
        "labelPadding": 0,
        "offset": -12,
        "grid": False,
    }
    rows = alt.Chart(alt.NamedData("rows"))
    return _bare(rows.mark_point(opacity=0).encode(x=_scores(scale, **axis), y=alt.value(0)))


def _bare(chart: Any) -> Any:
    return chart.properties(
        width="container", height="container", padding=0, autosize={"type": "fit", "contains": "padding"}
    )


def pareto() -> Any:
    """All methods by two quantities, the front as a staircase, whiskers for the intervals of scores.

    Each row has ``x``, ``y``, the ends of its interval on either axis, ``front``, and ``tail``: whether the staircase
    ends there along x or along y.
    """
    rows = alt.Chart(alt.NamedData("rows"))
    front = rows.transform_filter("datum.front")
    tail = {"aria": False, "color": ACCENT, "strokeDash": [2, 4], "opacity": 0.7, "strokeWidth": 1.5}
    layers = [
        rows.mark_rule(**tail)
        .transform_filter("datum.tail.x")
        .encode(x2=alt.value("width"))
        .properties(name="tail-x"),
        rows.mark_rule(**tail)
        .transform_filter("datum.tail.y")
        .encode(y2=alt.value("height"))
        .properties(name="tail-y"),
        front.mark_line(aria=False, color=ACCENT, strokeWidth=2, interpolate="step-after").properties(
            name="front"
        ),
    ]
    whisker = rows.mark_rule(aria=False, strokeWidth=1.25).encode(
        opacity=_front(0.45, 0.3), color=_front(ACCENT, SOFT)
    )
    layers += [whisker.encode(x2="x_low:Q"), whisker.encode(x2="x_high:Q")]
    layers += [whisker.encode(y2="y_low:Q"), whisker.encode(y2="y_high:Q")]
    points = rows.mark_point(size=120, strokeWidth=1.5, stroke=PAPER, opacity=1).encode(
        fill=_front(ACCENT, SOFT),
        fillOpacity=_front(1, 0.6),
        shape=alt.Shape("shape:N", scale=None),
        description="words:N",
    )
    names = rows.mark_text(aria=False, fontSize=12).encode(text="name:N", fill=_front(INK, SOFT))
    zoom = alt.selection_interval(bind="scales", zoom=ZOOM, translate=DRAG, name="zoom")
    layers += [points.add_params(zoom).properties(name="points"), names.properties(name="names")]
    return alt.layer(*layers).properties(width="container", height=340)


def _front(there: Any, elsewhere: Any) -> Any:
    return alt.when("datum.front").then(alt.value(there)).otherwise(alt.value(elsewhere))


def curves() -> Any:
    """Learning curves: a line for each method, a band over its seeds, and a cursor at the step that is read."""
    focus, place = alt.param("focus", value=None), alt.param("place", value=None)
    zoom = alt.selection_interval(bind="scales", zoom=ZOOM, translate=DRAG, name="zoom")
    axis = alt.Axis(title="training step", tickMinStep=1, format="~s", tickCount=6)
    base = alt.Chart(alt.NamedData("rows")).encode(
        x=alt.X("step:Q", axis=axis, scale=alt.Scale(nice=False, zero=False)), detail="id:N"
    )

    def shown(opacity: float) -> Any:
        return (
            alt.when("focus === null || focus === datum.id")
            .then(alt.value(opacity))
            .otherwise(alt.value(0.1))
        )

    def near(field: str) -> Any:
        return alt.Y(field, scale=alt.Scale(zero=False))

    colour = alt.Color("colour:N", scale=None)
    band = base.mark_area(aria=False).encode(y=near("low:Q"), y2="high:Q", color=colour, opacity=shown(0.12))
    lines = base.mark_line(strokeWidth=2, strokeJoin="round").encode(
        y=near("mean:Q"),
        color=colour,
        opacity=shown(1),
        strokeDash=alt.StrokeDash("dash:N", scale=None),
        description="label:N",
    )
    rule = alt.Chart(alt.Data(values=[{}])).mark_rule(aria=False, color=SOFT, strokeDash=[3, 3])
    cursor = rule.encode(
        x=alt.value(alt.expr("place")), opacity=alt.value(alt.expr("place === null ? 0 : 1"))
    )
    layers = [band, lines.add_params(zoom).properties(name="lines"), cursor]
    return alt.layer(*layers).add_params(focus, place).properties(width="container", height=310)


def rates(labels: str, title: str) -> Any:
    """Validation score against learning rate: a line for each method, and a ring at the rate that was chosen."""
    axis = alt.Axis(title="learning rate", format="~e", tickCount=6)
    base = alt.Chart(alt.NamedData("rows")).encode(
        x=alt.X("lr:Q", scale=alt.Scale(type="log", nice=False), axis=axis),
        y=alt.Y("score:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title=title, labelExpr=labels)),
        detail="id:N",
        color=alt.Color("colour:N", scale=None),
        description="label:N",
    )
    ring = alt.when("datum.chosen").then(alt.value(1)).otherwise(alt.value(0))
    return alt.layer(
        base.mark_line(strokeWidth=2, strokeJoin="round"),
        base.mark_point(filled=True, size=36, opacity=1),
        base.mark_point(size=140, strokeWidth=2).encode(opacity=ring),
        base.mark_text(align="left", dx=6, fontSize=12, aria=False).encode(text="name:N"),
    ).properties(width="container", height=300, padding={"right": 110})
