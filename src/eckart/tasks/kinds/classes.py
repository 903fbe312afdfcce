"""Classification: one of a few names for each text, pair of texts, or image."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eckart.data.labels import CLASSES
from eckart.data.read import Data
from eckart.data.splits import PARTS
from eckart.tasks.encode import Images, check_length, image_recipe, load_tokenizer, tokenised
from eckart.tasks.kinds.kind import Encoded, Examples, Kind, Shrink, texts_of
from eckart.tasks.metrics import (
    Metric,
    Outcomes,
    auroc,
    by_name,
    classes_said,
    macro_f1,
    matthews,
    right,
)
from eckart.tasks.pretrained import Checkpoint


class Classification(Kind):
    """An outcome is the class and the logits."""

    labelled = True
    metrics = by_name(
        Metric("accuracy", each=right),
        Metric("macro_f1", whole=macro_f1),
        Metric("mcc", whole=matthews),
        Metric("auroc", whole=auroc),
    )

    def outcomes(self, outputs: Any, batch: Mapping[str, Any]) -> Outcomes:
        """Class and logits of each example."""
        logits = outputs.logits.detach().float().cpu().numpy()
        return np.concatenate([batch["labels"].cpu().numpy()[:, None], logits], axis=1, dtype=np.float64)

    def said(self, outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray]:
        """Indices of classes."""
        return outcomes[:, 0].astype(int), classes_said(outcomes)

    def classes(self, outcomes: Outcomes) -> list[int] | None:
        """The class of the greatest logit."""
        found: list[int] = classes_said(outcomes).tolist()
        return found

    def trivial(self, train: Examples, test: Examples, model: Any) -> tuple[str, Outcomes]:
        """The class that is most frequent in the train split."""
        counts = np.bincount(np.asarray(self.data.splits["train"].labels))
        truth = np.asarray(self.data.splits["test"].labels, dtype=float)
        logits = np.zeros((len(truth), len(self.data.labels or ())))
        logits[:, counts.argmax()] = 1.0
        return "majority class", np.concatenate([truth[:, None], logits], axis=1)

    def label(self) -> str:
        """The label of the first training example."""
        return str((self.data.labels or [])[(self.data.splits["train"].labels or [0])[0]])


class TextClassification(Classification):
    """Texts, or pairs of texts."""

    name = "text-classification"
    reads = (True, CLASSES)

    def encode(self, checkpoint: Checkpoint, model: Any, max_length: int, shrink: Shrink) -> Encoded:
        """Token ids, cut to ``max_length`` and padded by the batch."""
        return encode_texts(self.data, checkpoint, model, max_length)

    def example(self, train: Examples, letters: int) -> str:
        """Its text, and its label."""
        return f"{texts_of(self.data.splits['train'], letters)} → {self.label()}"


class ImageClassification(Classification):
    """Images."""

    name = "image-classification"
    reads = (True, CLASSES)

    def encode(self, checkpoint: Checkpoint, model: Any, max_length: int, shrink: Shrink) -> Encoded:
        """Pixels, as the model's own image processor makes them."""
        recipe = image_recipe(checkpoint, model.config, self.data.splits["train"].inputs[0])
        train, validation, test = (Images(self.data.splits[part], recipe.prepare) for part in PARTS)
        return Encoded(train, validation, test, recipe, recipe.processor)

    def example(self, train: Examples, letters: int) -> str:
        """Its file where it has one, and its label."""
        first = self.data.splits["train"].inputs[0]
        return f"{first if isinstance(first, Path) else 'an image'} → {self.label()}"


def encode_texts(data: Data, checkpoint: Checkpoint, model: Any, max_length: int) -> Encoded:
    """The splits as token ids with their labels."""
    from transformers import DataCollatorWithPadding

    tokenizer = load_tokenizer(checkpoint, model, pad=True)
    check_length(max_length, tokenizer, model.config)
    encode = partial(tokenised, tokenizer=tokenizer, max_length=max_length)
    train, validation, test = (encode(data.splits[part]) for part in PARTS)
    return Encoded(train, validation, test, DataCollatorWithPadding(tokenizer), tokenizer)
