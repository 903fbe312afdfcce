"""Pictures by one library: Altair writes them as Vega-Lite, vl-convert turns that into SVG or a script for a page.

Nothing else imports the two, and a module that imports this one is itself imported late: both come with an extra.
"""

from __future__ import annotations

from functools import cache
from typing import Any
from xml.sax.saxutils import quoteattr

from eckart.extras import require

alt = require("altair", extra="compare")
_convert = require("vl_convert", extra="compare")

INK, SOFT, LINE, GRID, PAPER = "#1f2933", "#55606e", "#c3cad3", "#e6eaef", "#ffffff"
COLOURS = ("#0b7285", "#c2410c", "#5f3dc4", "#2b8a3e", "#a61e4d", "#8a6d1a", "#1864ab", "#495057")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "stroke")
"""Series differ in colour and in shape, for those who do not see the one or the other."""


def theme(
    ink: str = INK, soft: str = SOFT, line: str = LINE, grid: str = GRID, paper: str = PAPER
) -> dict[str, Any]:
    """Vega-Lite's configuration of every picture; a page gives CSS variables in place of colours."""
    text = {"labelColor": soft, "titleColor": soft, "labelFontSize": 12, "titleFontSize": 12}
    return {
        "background": None if paper.startswith("var") else paper,
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "axis": text
        | {
            "labelFlush": False,
            "gridColor": grid,
            "domainColor": line,
            "tickColor": line,
            "titleFontWeight": 400,
            "titlePadding": 8,
        },
        "legend": text | {"titleFontWeight": 600, "labelLimit": 0},
        "title": {
            "color": ink,
            "subtitleColor": soft,
            "anchor": "start",
            "fontSize": 15,
            "subtitleFontSize": 12,
        },
        "text": {"fill": ink, "fontSize": 12},
        "range": {"category": list(COLOURS), "symbol": list(SHAPES)},
    }


def svg(chart: Any, words: str) -> str:
    """The picture as SVG text, with words for those who cannot see it."""
    drawn: str = _convert.vegalite_to_svg(chart.to_dict(), config=theme())
    return drawn.replace("<svg ", f'<svg role="img" aria-label={quoteattr(words)} ', 1) + "\n"


@cache
def script() -> str:
    """JavaScript that draws Vega-Lite in a page, with nothing to fetch: it sets ``window.vegaEmbed``."""
    bundle: str = _convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle
