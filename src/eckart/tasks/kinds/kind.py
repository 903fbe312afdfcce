"""What a kind of task is: the base class of those in this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from eckart.data.read import Data
from eckart.data.splits import Split
from eckart.tasks.choosing import chosen
from eckart.tasks.metrics import Metric, Outcomes
from eckart.tasks.options import Words
from eckart.tasks.pretrained import Checkpoint

Examples = Dataset[dict[str, Any]]
Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]
Shrink = Callable[[Mapping[str, Split]], dict[str, Split]]


@dataclass(frozen=True)
class Encoded:
    """The splits as a model takes them, what makes batches of them, and the tokenizer or image processor."""

    train: Examples
    validation: Examples
    test: Examples
    collator: Collator
    processor: Any


class Kind:
    """A kind of task.

    Args:
        data: what was read.
        words: what the user says of it.
    """

    name: ClassVar[str]
    metrics: Mapping[str, Metric]
    """By name; the first decides where nothing is said."""
    reads: ClassVar[tuple[bool | None, str | None]]
    """Whether data must have labels, and what of them is to be told: see `eckart.data.read.read_data`."""
    labelled: ClassVar[bool] = False
    """Whether an example has one label, so that `said` can give a metric of the user's what it needs."""
    unseen: ClassVar[tuple[str, ...]] = ()
    """Parts of a batch that are for `outcomes` and not for the model."""
    training: ClassVar[Mapping[str, Any]] = {}
    """Fields of `TrainingArguments` that the kind has its own values of."""
    languages: ClassVar[bool] = False
    """Whether examples are blocks cut from a text, which are counted after they are encoded."""

    def __init__(self, data: Data, words: Words) -> None:
        self.data, self.words = data, words

    @property
    def sequences(self) -> int:
        """Texts that an example is scored by, at most."""
        return 1

    def given(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What of a batch the model takes."""
        return {name: value for name, value in batch.items() if name not in self.unseen}

    @cached_property
    def decides(self) -> Metric:
        """The metric that methods are compared by.

        Raises:
            InputError: one that the kind has not.
        """
        return chosen(self.words.metric, self.metrics, self.said if self.labelled else None, self.name)

    def outputs(self) -> list[str] | None:
        """Names of the numbers that the model's head gives; None where it has no head of its own."""
        return self.data.labels

    def config(self) -> dict[str, Any]:
        """Further fields of the model's config."""
        return {}

    def encode(self, checkpoint: Checkpoint, model: Any, max_length: int, shrink: Shrink) -> Encoded:
        """The splits of the data, encoded.

        Raises:
            InputError: data or model that do not suit the kind.
        """
        raise NotImplementedError

    def outcomes(self, outputs: Any, batch: Mapping[str, Any]) -> Outcomes:
        """What a model says of each example of a batch, and what is right, as numbers for `metrics`.

        Args:
            outputs: what the model returns.
            batch: what it was given, with its ``labels``.
        """
        raise NotImplementedError

    def said(self, outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray]:
        """What is right and what the model says, for a metric of the user's."""
        raise NotImplementedError

    def classes(self, outcomes: Outcomes) -> list[int] | None:
        """The class that is said of each example; None where there are no classes."""
        return None

    def trivial(self, train: Examples, test: Examples, model: Any) -> tuple[str, Outcomes]:
        """The predictor that looks at no input, and its outcomes on the test split."""
        raise NotImplementedError

    def example(self, train: Examples, letters: int) -> str:
        """The first training example as a person would write it down."""
        raise NotImplementedError


def texts_of(split: Split, letters: int) -> str:
    """The first text or pair of a split, cut short."""
    first = split.inputs[0]
    texts = [first] if isinstance(first, str) else first
    return " | ".join(" ".join(text[: 8 * letters].split())[:letters] for text in texts)
