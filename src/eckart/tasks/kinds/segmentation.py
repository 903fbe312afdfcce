"""Image segmentation: a class for each pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from eckart.data.masks import IGNORED, MASKS, Mask, pixel_counts
from eckart.data.read import Data
from eckart.data.splits import PARTS, Split
from eckart.tasks.encode import ImageRecipe, Images, image_recipe
from eckart.tasks.kinds.kind import Encoded, Examples, Kind, Shrink
from eckart.tasks.metrics import Each, Metric, Outcomes, by_name, counts_of, ratio_of_sums
from eckart.tasks.options import Words
from eckart.tasks.pretrained import Checkpoint


def overlap(outcomes: Outcomes, first: int, *, union: bool) -> Each:
    """Of each image the mean over its classes of 2|A∩B| / (|A| + |B|), Dice, or with ``union`` of |A∩B| / |A∪B|, IoU.

    Its classes are those that its mask has or the model says, from ``first`` on, so that a background may be left out;
    an image of background alone that is seen as that scores 1.
    """
    both, said, there = counts_of(outcomes)[:, first:].transpose(2, 0, 1)
    under = said + there - both if union else (said + there) / 2
    known = under > 0
    shares = np.where(known, both, 0) / np.where(known, under, 1)
    scores: np.ndarray = np.where(known.any(1), shares.sum(1) / np.maximum(known.sum(1), 1), 1.0)
    return np.where(np.isfinite(outcomes).all(1), scores, math.nan)


def mean_iou(outcomes: Outcomes) -> float:
    """Mean over all classes of Σ|A∩B| / Σ|A∪B|, the sums over all images."""
    both, said, there = counts_of(outcomes).sum(0).T
    union = said + there - both
    return float((both[union > 0] / union[union > 0]).mean())


class Segmentation(Kind):
    """An outcome is how many pixels have the right class and how many there are; then of each class how many have it
    rightly, are said to have it, and have it. Pixels are those of the size that the model takes."""

    name = "segmentation"
    reads = (None, MASKS)

    def __init__(self, data: Data, words: Words) -> None:
        super().__init__(data, words)
        first = int((data.labels or [""])[0] == "0")
        if first:
            data.notes.append("class 0 is taken for the background: dice and iou are means over the others")
        self.metrics = by_name(
            Metric("dice", each=partial(overlap, first=first, union=False)),
            Metric("iou", each=partial(overlap, first=first, union=True)),
            Metric("mean_iou", whole=mean_iou),
            Metric("pixel_accuracy", each=ratio_of_sums),
        )

    def config(self) -> dict[str, Any]:
        """What the loss leaves out."""
        return {"semantic_loss_ignore_index": IGNORED, "loss_ignore_index": IGNORED}

    def encode(self, checkpoint: Checkpoint, model: Any, max_length: int, shrink: Shrink) -> Encoded:
        """Pixels as the model's own image processor makes them, and masks resized, cut and padded with them."""
        recipe = MaskRecipe(image_recipe(checkpoint, model.config, self.data.splits["train"].inputs[0]))
        train, validation, test = (Masked(self.data.splits[part], recipe) for part in PARTS)
        return Encoded(train, validation, test, recipe, recipe.images.processor)

    def outcomes(self, outputs: Any, batch: Mapping[str, Any]) -> Outcomes:
        """Counts of each image; NaN where a logit is not finite."""
        rows = []
        for logits, mask in zip(outputs.logits.detach().float(), batch["labels"], strict=True):
            grown = F.interpolate(logits[None], size=mask.shape, mode="bilinear", align_corners=False)[0]
            counts = self._counts(mask, grown.argmax(0))
            rows.append(counts if bool(logits.isfinite().all()) else np.full(len(counts), math.nan))
        return np.stack(rows)

    def _counts(self, mask: Tensor, said: Tensor) -> np.ndarray:
        classes = len(self.data.labels or ())
        known = mask != IGNORED
        cells = mask[known].long() * classes + said[known]
        table = torch.bincount(cells, minlength=classes**2).view(classes, classes).double().cpu().numpy()
        three = np.stack([np.diag(table), table.sum(0), table.sum(1)], axis=1)
        return np.concatenate([[np.trace(table), table.sum()], three.reshape(-1)])

    def trivial(self, train: Examples, test: Examples, model: Any) -> tuple[str, Outcomes]:
        """Every pixel of the class that most of the train split have."""
        most = int(pixel_counts(self.data.splits["train"].labels or (), len(self.data.labels or ())).argmax())
        masks = (torch.as_tensor(test[i]["labels"]) for i in range(len(test)))  # type: ignore[arg-type]
        return "majority class", np.stack(
            [self._counts(mask, torch.full_like(mask, most).long()) for mask in masks]
        )

    def example(self, train: Examples, letters: int) -> str:
        """The share of each class in its mask, the largest first."""
        first, names = (self.data.splits["train"].labels or [])[0], self.data.labels or []
        height, width = first.pixels().shape
        shares = pixel_counts([first], len(names)) / (height * width)
        told = [f"{names[i]} {shares[i]:.0%}" for i in np.argsort(-shares) if shares[i]]
        return f"{width}×{height} pixels → {', '.join(told)}"[: 2 * letters]


@dataclass(frozen=True)
class MaskRecipe:
    """How a model wants its images, and masks made alike."""

    images: ImageRecipe

    def mask(self, mask: Mask) -> UInt8[Tensor, "a b"]:
        """A mask through the steps that its image goes through, without a value between two classes; what is padded has
        no class."""
        shifted = mask.pixels() + np.uint8(1)  # no class becomes 0, which pads
        batch = self.images.processor(
            np.repeat(shifted[..., None], 3, axis=2),
            do_rescale=False,
            do_normalize=False,
            resample=0,
            return_tensors="pt",
        )
        found: Tensor = batch["pixel_values"][0][0].to(torch.uint8) - 1
        return found

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Collator: stack and normalise."""
        pixels = self.images.normalise(torch.stack([row["pixel_values"] for row in rows]))
        return {"pixel_values": pixels, "labels": torch.stack([row["labels"] for row in rows]).long()}


class Masked(Dataset[dict[str, Any]]):
    """Images with their masks, both of the model's size; masks are kept where images are."""

    def __init__(self, split: Split, recipe: MaskRecipe) -> None:
        self.images, self.recipe = Images(split, recipe.images.prepare), recipe
        self.masks = None
        if self.images.pixels is not None:
            self.masks = torch.stack([recipe.mask(mask) for mask in split.labels or ()])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.images[index]
        row["labels"] = self.recipe.mask(row["labels"]) if self.masks is None else self.masks[index]
        return row
