"""Weights of classes: each class counts alike in the loss, however many examples it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def balanced_weights(labels: Sequence[int], classes: int) -> Float[Tensor, " classes"]:
    """w_c = n / (C n_c) of n examples, n_c of class c: their mean over the examples is 1 (King & Zeng, 2001).

    Args:
        labels: the index of each example's class; every class occurs.
        classes: how many there are.
    """
    counts = np.bincount(labels, minlength=classes)
    return torch.as_tensor(len(labels) / (classes * counts), dtype=torch.float32)


@dataclass(frozen=True)
class WeightedLoss:
    """Forward hook: the loss of a classifier becomes the mean of −w_c log p(c) over the examples of the batch.

    It is divided by their number and not by the sum of their weights, so that the parts of a batch add up.
    """

    weights: Float[Tensor, " classes"]

    def __call__(self, module: nn.Module, args: Any, inputs: Mapping[str, Any], outputs: Any) -> Any:
        """The outputs with the weighted loss, where labels were given."""
        labels = inputs.get("labels")
        if labels is not None:
            each = F.cross_entropy(outputs.logits.float(), labels, reduction="none")
            outputs.loss = (self.weights.to(labels.device)[labels] * each).mean()
        return outputs


def weigh(model: nn.Module, names: Sequence[str], labels: Sequence[int]) -> str:
    """Give the loss of a classifier balanced weights, in place; says which."""
    weights = balanced_weights(labels, len(names))
    model.register_forward_hook(WeightedLoss(weights), with_kwargs=True)
    told = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, weights.tolist(), strict=True))
    return f"weights of the classes in the loss: {told}"
