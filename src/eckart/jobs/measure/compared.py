"""Linear CKA of the mean states of texts, within each model and between two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch

from eckart.errors import InputError
from eckart.jobs.measure.likeness import Likeness
from eckart.jobs.measure.scores import ModelScores
from eckart.metrics import LinearCKA
from eckart.metrics.cka import LEAST

AT_ONCE = 1000
"""Texts of a batch of `LinearCKA`, which keeps their square for every layer."""


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
