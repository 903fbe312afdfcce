"""The few shapes that the pictures are made of: plain SVG text, so that no plotting library is needed."""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import escape

INK, GRID = "#1f2933", "#e6eaef"


def document(width: float, height: float, parts: Iterable[str]) -> str:
    """A whole picture: the parts on a white ground."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="system-ui, sans-serif">'
    )
    return "\n".join([head, rect(0, 0, width, height, "#ffffff"), *parts, "</svg>\n"])


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: int = 12,
    weight: int = 400,
    anchor: str = "start",
    colour: str = INK,
) -> str:
    """A line of text; ``anchor`` says which end stands at x."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{colour}">{escape(words)}</text>'
    )


def rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    """A filled rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:.1f}" height="{height:g}" fill="{fill}"/>'


def line(
    x1: float, y1: float, x2: float, y2: float, colour: str, *, width: int = 1, dash: str = "none"
) -> str:
    """A straight line."""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:g}" x2="{x2:.1f}" y2="{y2:g}" stroke="{colour}" '
        f'stroke-width="{width}" stroke-dasharray="{dash}"/>'
    )


def polyline(
    points: Iterable[tuple[float, float]], colour: str, title: str, *, width: float = 1.4, opacity: float = 1
) -> str:
    """A line through points; ``title`` is shown under the pointer."""
    where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{where}" fill="none" stroke="{colour}" stroke-width="{width}" '
        f'stroke-opacity="{opacity}"><title>{escape(title)}</title></polyline>'
    )


def circle(x: float, y: float, *, radius: float = 3.4, fill: str = "#ffffff", stroke: str = INK) -> str:
    """A mark at a point."""
    return f'<circle cx="{x:.1f}" cy="{y:g}" r="{radius:g}" fill="{fill}" stroke="{stroke}"/>'
