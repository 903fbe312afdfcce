"""How alike the layers of models are: linear CKA of the mean states of texts, within each model and between two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import torch

from eckart.errors import InputError
from eckart.jobs.measure.scores import ModelScores
from eckart.metrics import LinearCKA
from eckart.metrics.cka import LEAST

AT_ONCE = 1000
"""Texts of a batch of `LinearCKA`, which keeps their square for every layer."""


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


def likenesses(models: Sequence[ModelScores]) -> list[Likeness]:
    """Of each model with itself and with those after it, over the texts that have a token in all of them.

    A row is the mean state of one text, so that models with other tokenizers and widths can be compared.

    Args:
        models: measured over the same texts, with their mean states.

    Raises:
        InputError: fewer than four such texts.
    """
    known = torch.stack([scores.values["tokens"] > 0 for scores in models]).all(0)
    if int(known.sum()) < LEAST:
        raise InputError(
            f"--cka: {int(known.sum())} texts have a token that counts: give at least {LEAST}, or leave it out"
        )
    found = []
    for one, two in combinations_with_replacement(models, 2):
        pair = LinearCKA()
        parts = torch.nonzero(known).squeeze(1).tensor_split(-(-int(known.sum()) // AT_ONCE))
        for rows in parts:
            pair.update([state[rows] for state in one.states], [state[rows] for state in two.states])
        cka = pair.compute().tolist()
        found.append(Likeness(one.model, two.model, one.layers, two.layers, cka))
    return found
