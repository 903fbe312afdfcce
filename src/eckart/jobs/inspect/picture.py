"""The picture of an inspection."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import torch

from eckart.jobs._svg import GRID, INK, circle, document, line, polyline, rect, text
from eckart.linalg import spectrum

if TYPE_CHECKING:
    from eckart.jobs.inspect.inspection import Inspection, LayerSpectrum

WIDTH, LEFT, SPAN, ROW, TOP, CURVES = 960, 330, 470, 18, 74, 230
FIRST = TOP + CURVES + 96  # y of the first row
PLAIN, WIDE, LOW, MARK = "#8a97a8", "#d3dae3", "#0b7285", "#c2410c"


def draw(inspection: Inspection) -> str:
    """The energy curves of all layers, then one row per layer with its ranks, as a share of min(rows, columns)."""
    layers, percent = inspection.layers, f"{100 * inspection.energy:g} %"
    height = FIRST + ROW * len(layers) + 52
    low = sum(layer.nearly_low_rank for layer in layers)
    level = TOP + CURVES * (1 - inspection.energy)
    parts = [
        text(20, 30, f"Spectra of {inspection.model}", size=17, weight=600),
        text(
            20,
            50,
            f"Nearly low-rank: {low} of {len(layers)} weights. Factors that hold {percent} of their energy need "
            "at most half the numbers.",
        ),
        text(20, TOP + 14, "Energy held", weight=600),
        text(20, TOP + 30, "by the leading singular values"),
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y, label = LEFT + share * SPAN, TOP + CURVES * (1 - share), f"{100 * share:g} %"
        parts += [
            line(x, TOP, x, TOP + CURVES, GRID),
            line(LEFT, y, LEFT + SPAN, y, GRID),
            text(LEFT - 8, y + 4, label, anchor="end"),
            text(x, TOP + CURVES + 18, label, anchor="middle"),
            line(x, FIRST - 8, x, height - 48, GRID),
            text(x, height - 32, label, anchor="middle"),
        ]
    axis = "rank, as a share of min(rows, columns)"
    parts += [
        text(LEFT + SPAN / 2, TOP + CURVES + 36, axis, anchor="middle"),
        text(LEFT + SPAN / 2, height - 14, axis, anchor="middle"),
        line(LEFT, level, LEFT + SPAN, level, MARK, dash="5 4"),
        text(LEFT + SPAN + 8, level + 4, percent, colour=MARK),
        *(_curve(layer) for layer in sorted(layers, key=lambda layer: layer.nearly_low_rank)),
        *_legend(FIRST - 34, percent),
        *(_row(layer, FIRST + ROW * i, inspection.energy) for i, layer in enumerate(layers)),
    ]
    return document(WIDTH, height, parts)


def _curve(layer: LayerSpectrum) -> str:
    energy = spectrum.energy_curve(layer.singular_values)
    last = energy.numel() - 1
    picks = torch.linspace(0, last, min(last + 1, 120)).round().long().tolist()
    points = ((LEFT + SPAN * i / last, TOP + CURVES * (1 - energy[i].item())) for i in picks)
    colour, opacity = (LOW, 0.85) if layer.nearly_low_rank else (PLAIN, 0.45)
    return polyline(points, colour, layer.name, opacity=opacity)


def _row(layer: LayerSpectrum, y: float, energy: float) -> str:
    middle, scale = y + ROW / 2, SPAN / min(layer.shape)
    colour, ink = (LOW, LOW) if layer.nearly_low_rank else (PLAIN, INK)
    name = layer.name if len(layer.name) <= 46 else "…" + layer.name[-45:]
    alpha = "–" if math.isnan(layer.alpha) else f"α {layer.alpha:.2f}"
    effective = LEFT + scale * layer.effective_rank
    return "".join(
        [
            f"<g><title>{escape(json.dumps(layer.row(), ensure_ascii=False))}</title>",
            text(LEFT - 8, middle + 4, name, anchor="end", size=11, colour=ink),
            rect(LEFT, y + 4, scale * layer.ranks[0.99], ROW - 8, WIDE),
            rect(LEFT, y + 4, scale * layer.ranks[energy], ROW - 8, colour),
            circle(LEFT + scale * layer.stable_rank, middle),
            line(effective, y + 1, effective, y + ROW - 1, MARK, width=2),
            text(LEFT + SPAN + 10, middle + 4, f"{layer.shape[0]} × {layer.shape[1]}", size=11),
            text(WIDTH - 16, middle + 4, alpha, anchor="end", size=11),
            "</g>",
        ]
    )


def _legend(y: float, percent: str) -> list[str]:
    x = LEFT
    return [
        text(20, y, "Ranks of each weight", weight=600),
        *(rect(x, y - 9, 14, 10, PLAIN), text(x + 19, y, f"{percent} of energy")),
        *(rect(x + 120, y - 9, 14, 10, WIDE), text(x + 139, y, "99 %")),
        *(rect(x + 180, y - 9, 14, 10, LOW), text(x + 199, y, "nearly low-rank")),
        *(line(x + 310, y - 11, x + 310, y + 2, MARK, width=2), text(x + 317, y, "effective rank")),
        *(circle(x + 412, y - 4), text(x + 421, y, "stable rank")),
        text(WIDTH - 16, y, "tail exponent", anchor="end"),
    ]
