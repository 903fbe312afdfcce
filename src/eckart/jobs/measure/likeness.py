"""How alike the layers of one model or of two are, as it stands in files and pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Likeness:
    """CKA of every layer of one model with every layer of the same or another.

    Attributes:
        model, other: names.
        layers, other_layers: numbers, 0 the embeddings.
        cka: a row for each layer of ``model``; NaN where a layer does not vary.
    """

    model: str
    other: str
    layers: list[int]
    other_layers: list[int]
    cka: list[list[float]]

    def rows(self) -> list[dict[str, Any]]:
        """One for each pair of layers, None for what is not a number."""
        return [
            {
                "model": self.model,
                "layer": layer,
                "other": self.other,
                "other_layer": other,
                "cka": None if math.isnan(value) else value,
            }
            for layer, line in zip(self.layers, self.cka, strict=True)
            for other, value in zip(self.other_layers, line, strict=True)
        ]
