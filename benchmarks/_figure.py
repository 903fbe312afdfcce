"""One line chart as plain SVG, so that no plotting library is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from eckart.jobs._svg import GRID, circle, document, line, polyline, text

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 420, 76, 46, 190, 56
COLOURS = ("#0b7285", "#c2410c", "#5f3dc4", "#2b8a3e", "#868e96", "#e67700", "#1864ab", "#a61e4d")


def line_chart(
    path: Path,
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    log_x: bool = False,
    log_y: bool = True,
) -> None:
    """Write the chart of these series of (x, y); points that a logarithm cannot show are left out."""
    kept = {
        name: [
            (x, y) for x, y in points if (x > 0 or not log_x) and (y > 0 or not log_y) and math.isfinite(y)
        ]
        for name, points in series.items()
    }
    xs, ys = ([point[axis] for points in kept.values() for point in points] for axis in (0, 1))
    place_x, ticks_x = _axis(xs, log_x, LEFT, WIDTH - RIGHT)
    place_y, ticks_y = _axis(ys, log_y, HEIGHT - BOTTOM, TOP)
    parts = [
        text(LEFT, 26, title, size=15),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_label, anchor="middle"),
        f'<g transform="rotate(-90 16 {HEIGHT / 2})">{text(16, HEIGHT / 2, y_label, anchor="middle")}</g>',
    ]
    for value in ticks_x:
        parts += [
            line(place_x(value), TOP, place_x(value), HEIGHT - BOTTOM, GRID),
            text(place_x(value), HEIGHT - 36, _show(value), anchor="middle"),
        ]
    for value in ticks_y:
        y = place_y(value)
        parts += [
            line(LEFT, y, WIDTH - RIGHT, y, GRID),
            text(LEFT - 6, y + 4, _show(value), anchor="end"),
        ]
    for i, (name, points) in enumerate(kept.items()):
        colour, y = COLOURS[i % len(COLOURS)], TOP + 10 + 20 * i
        marks = [(place_x(x), place_y(v)) for x, v in points]
        parts.append(polyline(marks, colour, name, width=1.8))
        if len(points) <= 24:
            parts += [circle(x, v, radius=3, fill=colour, stroke=colour) for x, v in marks]
        parts.append(line(WIDTH - RIGHT + 12, y, WIDTH - RIGHT + 34, y, colour, width=2))
        parts.append(text(WIDTH - RIGHT + 40, y + 4, name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document(WIDTH, HEIGHT, parts), encoding="utf-8")


def _axis(values, log: bool, start: float, stop: float):
    low, high = min(values), max(values)
    if log:
        low, high = math.floor(math.log10(low)), math.ceil(math.log10(high))
        high = max(high, low + 1)
        step = max(1, math.ceil((high - low) / 8))
        ticks = [10.0**e for e in range(low, high + 1, step)]
        return lambda v: start + (stop - start) * (math.log10(v) - low) / (high - low), ticks
    span = (high - low) or 1.0
    return lambda v: start + (stop - start) * (v - low) / span, [low + span * i / 5 for i in range(6)]


def _show(value: float) -> str:
    return f"{value:.3g}"
