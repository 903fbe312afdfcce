"""One line chart as plain SVG, so that no plotting library is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

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
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 26, title, "start", 15),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_label),
        f'<g transform="rotate(-90 16 {HEIGHT / 2})">{_text(16, HEIGHT / 2, y_label)}</g>',
    ]
    for value in ticks_x:
        parts += [
            _line(place_x(value), TOP, place_x(value), HEIGHT - BOTTOM),
            _text(place_x(value), HEIGHT - 36, _show(value)),
        ]
    for value in ticks_y:
        y = place_y(value)
        parts += [_line(LEFT, y, WIDTH - RIGHT, y), _text(LEFT - 6, y + 4, _show(value), "end")]
    for i, (name, points) in enumerate(kept.items()):
        colour, y = COLOURS[i % len(COLOURS)], TOP + 10 + 20 * i
        path_of = " ".join(f"{place_x(x):.1f},{place_y(v):.1f}" for x, v in points)
        parts.append(f'<polyline points="{path_of}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(points) <= 24:
            parts += [
                f'<circle cx="{place_x(x):.1f}" cy="{place_y(v):.1f}" r="3" fill="{colour}"/>'
                for x, v in points
            ]
        parts.append(_line(WIDTH - RIGHT + 12, y, WIDTH - RIGHT + 34, y, colour, 2.4))
        parts.append(_text(WIDTH - RIGHT + 40, y + 4, name, "start"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")


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


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 12) -> str:
    style = f'text-anchor="{anchor}" font-size="{size}" fill="#1f2933"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#e6eaef", width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'
