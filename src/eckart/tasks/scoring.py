"""What a model makes of the examples of a split, and its score with an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from eckart.tasks.statistics import Z95, interval
from eckart.tasks.task import Task


@dataclass(frozen=True)
class Evaluation:
    """A score on one split with its 95% interval over the examples, the mean loss, and the task's other scores."""

    score: float
    ci_low: float
    ci_high: float
    loss: float
    also: dict[str, float] = field(default_factory=dict)

    @property
    def standard_error(self) -> float:
        return (self.ci_high - self.ci_low) / (2 * Z95)


def lengths(split: Dataset[Any]) -> list[int]:
    """Tokens of each example; all zero where examples have no tokens."""
    size = len(split)  # type: ignore[arg-type]
    return [len(split[i]["input_ids"]) for i in range(size)] if "input_ids" in split[0] else [0] * size


@dataclass(frozen=True)
class Scored:
    """What a model makes of every example of a split, in the order of the split.

    Attributes:
        scores: of each example; their mean is the score.
        loss: the mean over the examples.
        predictions: the class said of each example; None where there are no classes.
        also: the task's other scores.
    """

    scores: Float[np.ndarray, " n"]
    loss: float
    predictions: list[int] | None
    also: Mapping[str, float] = field(default_factory=dict)

    def evaluation(self, groups: Sequence[str] | None = None) -> Evaluation:
        """The mean with its interval; clustered where the examples come in groups."""
        return Evaluation(*interval(self.scores, groups), loss=self.loss, also=dict(self.also))


@torch.inference_mode()
def score_examples(model: nn.Module, task: Task, split: Dataset[Any], batch_size: int) -> Scored:
    """Score every example of a split. Those of like length share a batch, so that little is spent on padding.
    Of the test split's model the harness's scores stand beside, where the task has one."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    sizes = lengths(split)
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    found: dict[int, np.ndarray] = {}
    losses = 0.0
    for start, batch in zip(
        range(0, len(order), batch_size),
        DataLoader(Subset(split, order), batch_size=batch_size, collate_fn=task.collator),
        strict=True,
    ):
        places = order[start : start + batch_size]
        batch = {name: value.to(device) for name, value in batch.items()}
        outputs = model(**task.given(batch))
        found.update(zip(places, task.outcomes(outputs, batch), strict=True))
        losses += float(outputs.loss) * len(places)
    outcomes = task.answered(model, split, np.stack([found[i] for i in range(len(sizes))]), batch_size)
    model.train(training)
    scores, also = task.scores(outcomes)
    if task.harness is not None and split is task.test:
        also |= task.harness.scores(model, batch_size)
    return Scored(scores, losses / len(sizes), task.predictions(outcomes), also)


SCORED_TOKENS = 4096
"""As many are scored at once at least: what makes its weights anew in each forward pass then does it less often."""


def scoring_batch(task: Task, batch_size: int) -> int:
    """How many examples are scored at once where so many are trained on."""
    return max(1, max(2 * batch_size, SCORED_TOKENS // task.max_length) // task.sequences)


def evaluate(model: nn.Module, task: Task, split: Dataset[Any], batch_size: int) -> Evaluation:
    """Score a model on a split."""
    return score_examples(model, task, split, batch_size).evaluation()
