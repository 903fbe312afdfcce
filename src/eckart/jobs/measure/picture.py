"""The picture of a measurement: one panel for each metric, one line for each model from its embeddings to its end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from eckart.jobs._svg import GRID, circle, document, line, polyline, rect, text

if TYPE_CHECKING:
    from eckart.jobs.measure.scores import Measurement, ModelScores

ACROSS, LEFT, TOP, SPAN, RISE, GAP, DROP = 3, 66, 84, 230, 150, 84, 78
COLOURS = ("#0b7285", "#c2410c", "#5f3dc4", "#2b8a3e", "#a61e4d", "#8a6d1a", "#1864ab", "#495057")


def draw(measurement: Measurement) -> str:
    """Means with their 95% intervals over the relative depth of the layers."""
    models = measurement.models
    metrics = list(models[0].at())
    above = TOP + 18 * len(models)
    width = LEFT + ACROSS * (SPAN + GAP) - 24
    height = above + math.ceil(len(metrics) / ACROSS) * (RISE + DROP)
    parts = [
        text(20, 30, f"Hidden states over {measurement.data}", size=17, weight=600),
        text(20, 50, "Mean over the texts, with its 95 % interval, from the embeddings to the last layer"),
    ]
    for i, scores in enumerate(models):
        y, held = TOP + 18 * i, f"{scores.model}: width {scores.width}, {scores.tokens:.1f} tokens a text"
        parts += [rect(20, y - 9, 14, 10, _colour(i)), text(40, y, held)]
    for i, metric in enumerate(metrics):
        x, y = LEFT + i % ACROSS * (SPAN + GAP), above + 34 + i // ACROSS * (RISE + DROP)
        parts += _panel(models, metric, x, y)
    return document(width, height, parts)


def _panel(models: list[ModelScores], metric: str, x: float, y: float) -> Iterator[str]:
    curves = [
        [(score.layer / max(scores.depth, 1), score) for score in scores.scores if score.metric == metric]
        for scores in models
    ]
    known = [
        (score.mean, 0.0 if math.isnan(score.ci) else score.ci)
        for curve in curves
        for _, score in curve
        if score.n
    ]
    ticks = _ticks(min(m - ci for m, ci in known), max(m + ci for m, ci in known))
    scale = RISE / (ticks[-1] - ticks[0])

    def at(value: float) -> float:
        return y + RISE - scale * (value - ticks[0])

    yield text(x, y - 12, metric.replace("_", " "), weight=600)
    for tick in ticks:
        yield line(x, at(tick), x + SPAN, at(tick), GRID)
        yield text(x - 8, at(tick) + 4, f"{tick:.6g}", anchor="end", size=11)
    for share, label in ((0, "embeddings"), (0.5, "middle"), (1, "last")):
        yield line(x + share * SPAN, y, x + share * SPAN, y + RISE, GRID)
        yield text(x + share * SPAN, y + RISE + 16, label, anchor="middle", size=11)
    for i, (scores, curve) in enumerate(zip(models, curves, strict=True)):
        marks = [(x + SPAN * depth, score) for depth, score in curve if score.n]
        yield polyline([(place, at(score.mean)) for place, score in marks], _colour(i), scores.model)
        for place, score in marks:
            if score.ci > 0:
                yield line(place, at(score.mean - score.ci), place, at(score.mean + score.ci), _colour(i))
            yield circle(place, at(score.mean), radius=2.2, fill=_colour(i), stroke=_colour(i))


def _ticks(low: float, high: float) -> list[float]:
    """At most six round numbers of even distance, from below ``low`` to above ``high``."""
    spread = max(high - low, 1e-6 * abs(high), 1e-9)
    unit = 10 ** math.floor(math.log10(spread / 4))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor * 4 >= spread)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * i for i in range(first, max(last, first + 1) + 1)]


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]
