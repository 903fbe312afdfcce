"""Regression, a number for each text or pair of texts; and several labels, a yes or no for each of a few names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from eckart.data.labels import NUMBERS, SEVERAL
from eckart.data.read import Data
from eckart.tasks.kinds.classes import encode_texts
from eckart.tasks.kinds.kind import Encoded, Examples, Kind, Shrink, texts_of
from eckart.tasks.metrics import (
    Metric,
    Outcomes,
    all_labels_right,
    by_name,
    labels_auroc,
    labels_macro_f1,
    labels_micro_f1,
    labels_right,
    pearson,
    rmse,
    spearman,
)
from eckart.tasks.options import Words
from eckart.tasks.pretrained import Checkpoint


class Regression(Kind):
    """An outcome is the number and the number said, in the unit of the labels.

    The model learns (y − μ) / σ, with mean and standard deviation of the train split, so that no learning rate depends
    on the unit; μ and σ are in the config of what is saved, as ``label_mean`` and ``label_std``.
    """

    name = "regression"
    reads = (True, NUMBERS)
    labelled = True
    metrics = by_name(
        Metric("pearson", whole=pearson),
        Metric("spearman", whole=spearman),
        Metric("rmse", whole=rmse, greater_is_better=False),
    )

    def __init__(self, data: Data, words: Words) -> None:
        labels = np.asarray(data.splits["train"].labels, dtype=float)
        self.mean, self.std = float(labels.mean()), float(labels.std()) or 1.0
        data.notes.append(f"labels from {labels.min():g} to {labels.max():g}, mean {self.mean:.4g}")
        super().__init__(data, words)

    def outputs(self) -> list[str] | None:
        """One number."""
        return ["score"]

    def config(self) -> dict[str, Any]:
        """What undoes the scaling, for whoever uses the model."""
        return {"problem_type": "regression", "label_mean": self.mean, "label_std": self.std}

    def encode(self, checkpoint: Checkpoint, model: Any, max_length: int, shrink: Shrink) -> Encoded:
        """Token ids with the scaled numbers."""
        splits = {
            part: replace(split, labels=[(label - self.mean) / self.std for label in split.labels or ()])
            for part, split in self.data.splits.items()
        }
        return encode_texts(replace(self.data, splits=splits), checkpoint, model, max_length)

    def outcomes(self, outputs: Any, batch: Mapping[str, Any]) -> Outcomes:
        """Both numbers of each example."""
        said = outputs.logits.detach().double().cpu().numpy().reshape(-1)
        truth = batch["labels"].double().cpu().numpy().reshape(-1)
        both: np.ndarray = self.mean + self.std * np.stack([truth, said], axis=1)
        return both

    def said(self, outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray]:
        """The numbers."""
        return outcomes[:, 0], outcomes[:, 1]

    def trivial(self, train: Examples, test: Examples, model: Any) -> tuple[str, Outcomes]:
        """The mean of the train split."""
        truth = np.asarray(self.data.splits["test"].labels, dtype=float)
        return "mean", np.stack([truth, np.full(len(truth), self.mean)], axis=1)

    def example(self, train: Examples, letters: int) -> str:
        """Its text, and its number."""
        split = self.data.splits["train"]
        return f"{texts_of(split, letters)} → {(split.labels or [0.0])[0]:g}"


class MultiLabel(Kind):
    """An outcome is a 0 or 1 for each label, and a logit for each."""

    name = "multi-label"
    reads = (True, SEVERAL)
    labelled = True
    metrics = by_name(
        Metric("label_accuracy", each=labels_right),
        Metric("micro_f1", whole=labels_micro_f1),
        Metric("macro_f1", whole=labels_macro_f1),
        Metric("auroc", whole=labels_auroc),
        Metric("subset_accuracy", each=all_labels_right),
    )

    def config(self) -> dict[str, Any]:
        """Yes or no for each label."""
        return {"problem_type": "multi_label_classification"}

    def encode(self, checkpoint: Checkpoint, model: Any, max_length: int, shrink: Shrink) -> Encoded:
        """Token ids with a 0.0 or 1.0 for each label."""
        splits = {
            part: replace(split, labels=[[float(flag) for flag in label] for label in split.labels or ()])
            for part, split in self.data.splits.items()
        }
        return encode_texts(replace(self.data, splits=splits), checkpoint, model, max_length)

    def outcomes(self, outputs: Any, batch: Mapping[str, Any]) -> Outcomes:
        """Flags and logits of each example."""
        parts = [batch["labels"].double().cpu().numpy(), outputs.logits.detach().double().cpu().numpy()]
        return np.concatenate(parts, axis=1)

    def said(self, outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray]:
        """A 0 or 1 for each label."""
        half = outcomes.shape[1] // 2
        return outcomes[:, :half].astype(int), (outcomes[:, half:] > 0).astype(int)

    def trivial(self, train: Examples, test: Examples, model: Any) -> tuple[str, Outcomes]:
        """The labels that more than half of the train split has."""
        share = np.asarray(self.data.splits["train"].labels, dtype=float).mean(0)
        truth = np.asarray(self.data.splits["test"].labels, dtype=float)
        return "labels of most", np.concatenate([truth, np.tile(share - 0.5, (len(truth), 1))], axis=1)

    def example(self, train: Examples, letters: int) -> str:
        """Its text, and its labels."""
        split = self.data.splits["train"]
        flags = (split.labels or [[]])[0]
        there = [name for name, flag in zip(self.data.labels or (), flags, strict=True) if flag]
        return f"{texts_of(split, letters)} → {', '.join(there) or 'none'}"
