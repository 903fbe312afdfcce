"""A task: a pretrained model and a data set, encoded once, with the score by which methods are compared."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from eckart.data.read import Data, read_data
from eckart.data.splits import PARTS, Split, limit
from eckart.errors import InputError
from eckart.quiet import quiet
from eckart.tasks.encode import (
    Images,
    Rows,
    check_length,
    image_recipe,
    load_tokenizer,
    token_blocks,
    tokenised,
)
from eckart.tasks.heads import AUTO_CLASSES, Base, load_base
from eckart.tasks.pretrained import Checkpoint, check_weights, find_model

KINDS = tuple(AUTO_CLASSES)
Examples = Dataset[dict[str, Any]]
Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """What every method of a comparison shares: model, data, head, score.

    Attributes:
        kind: "text-classification", "causal-lm" or "image-classification".
        labels: class names; None for language modelling.
        train, validation, test: encoded examples, dicts of token ids (or pixels) and ``labels``.
        collator: makes a batch of examples.
        processor: the tokenizer or image processor, to save with a trained model.
        fingerprint: SHA-256 of model files, data and options; equal fingerprints mean equal tasks.
        max_length: tokens of an example at most.
    """

    kind: str
    model_name: str
    data_name: str
    labels: list[str] | None
    train: Examples
    validation: Examples
    test: Examples
    collator: Collator
    processor: Any
    fingerprint: str
    max_length: int
    base: Base = field(repr=False)
    data: Data = field(repr=False)

    @property
    def metric(self) -> str:
        """Name of the score: "accuracy" or "bits_per_token"."""
        return "bits_per_token" if self.kind == "causal-lm" else "accuracy"

    @property
    def greater_is_better(self) -> bool:
        """Whether a greater score is a better one."""
        return self.metric == "accuracy"

    @property
    def groups(self) -> list[str] | None:
        """Where each test example comes from, such as a file; None where each stands for itself."""
        return None if self.kind == "causal-lm" else self.data.splits["test"].groups

    @property
    def head_modules(self) -> list[str]:
        """Modules trained beside the adapter (PEFT's ``modules_to_save``)."""
        return self.base.head_modules

    @property
    def default_targets(self) -> str | list[str]:
        """What an adapter is put on when the user does not say."""
        return self.base.default_targets()

    def fresh_model(self, seed: int) -> Any:
        """The pretrained model, float32 and in eval mode, with a head drawn from ``seed``: the same for all methods."""
        return self.base.fresh(seed)

    def per_example(self, outputs: Any, labels: Tensor) -> Float[np.ndarray, " n"]:
        """Score of each example: 1 or 0 for right or wrong; for text the bits per token of each block.

        bits = −(1/(t−1)) Σ log₂ p(token | tokens before it), over the t tokens of a block but the first.

        Args:
            outputs: what the model returns; its ``logits`` are ``n classes`` or ``n t vocabulary``.
            labels: ``n`` classes or ``n t`` tokens.

        Returns:
            One score per example; NaN where the logits are not finite (a run that diverged).
        """
        logits = outputs.logits.detach().float()
        if self.kind == "causal-lm":
            nats = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
            scores = nats.double().mean(1) / math.log(2)
        else:
            scores = (logits.argmax(-1) == labels).double()
            scores[~logits.isfinite().all(-1)] = math.nan
        result: np.ndarray = scores.cpu().numpy()
        return result

    def trivial(self) -> tuple[str, Float[np.ndarray, " n"]]:
        """The predictor that looks at no input, and its score of each test example.

        For classes the one that is most frequent in the train split. For text every token by its frequency there, with
        one added to the count of each token of the vocabulary: bits = −log₂ p(token).
        """
        if self.kind != "causal-lm":
            counts = np.bincount(np.asarray(self.data.splits["train"].labels))
            truth = np.asarray(self.data.splits["test"].labels)
            return "majority class", (truth == counts.argmax()).astype(float)
        blocks = [np.asarray(self.train[i]["labels"])[1:] for i in range(len(self.train))]  # type: ignore[arg-type]
        counts = np.bincount(np.concatenate(blocks), minlength=self.base.model.config.vocab_size) + 1
        bits = np.log2(counts.sum()) - np.log2(counts)
        size = len(self.test)  # type: ignore[arg-type]
        return "unigram", np.array([bits[np.asarray(self.test[i]["labels"])[1:]].mean() for i in range(size)])

    def example(self, letters: int = 80) -> str:
        """The first training example as a person would write it down: its text, cut short, and its label."""
        train = self.data.splits["train"]
        first = train.inputs[0]
        if self.data.kind == "image":
            shown = str(first) if isinstance(first, Path) else "an image"
        else:
            texts = [first] if isinstance(first, str) else first
            shown = " | ".join(" ".join(text[: 8 * letters].split())[:letters] for text in texts)
        return shown if train.labels is None else f"{shown} → {(self.labels or [])[train.labels[0]]}"

    def describe(self) -> dict[str, Any]:
        """The task in plain values, for a report: names, sizes, how often each label occurs, notes on the data."""
        counts = {
            part: dict(
                zip(
                    self.labels or (),
                    np.bincount(labels, minlength=len(self.labels or ())).tolist(),
                    strict=True,
                )
            )
            for part in PARTS
            if (labels := self.data.splits[part].labels) is not None
        }
        return {
            "kind": self.kind,
            "model": self.model_name,
            "data": self.data_name,
            "columns": self.data.columns,
            "metric": self.metric,
            "sizes": {part: len(getattr(self, part)) for part in PARTS},
            "labels": self.labels,
            "label_counts": counts,
            "head_modules": self.head_modules,
            "base_parameters": self.base.base_parameters,
            "head_parameters": self.base.head_parameters,
            "example": self.example(),
            "notes": self.data.notes,
            "fingerprint": self.fingerprint,
        }


def load_task(
    model: str | Path | None = None,
    data: str | Path | None = None,
    *,
    kind: str = "auto",
    text_column: str | None = None,
    label_column: str | None = None,
    sep: str | None = None,
    columns: str | None = None,
    encoding: str = "utf-8",
    max_length: int = 128,
    limits: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Task:
    """Read a model and a data set and make a task of them.

    Args:
        model: a transformers model directory or hub name; None is an embedded one: for language modelling the code
            model, else all-MiniLM-L6-v2.
        data: see `eckart.data.read.read_data`; None is the docstrings of the standard library.
        kind: one of `KINDS`, or "auto": images, texts with labels, or text alone decide it.
        text_column: column of the text, or two joined by a comma; found by its name when None.
        label_column: column of the labels; found by its name when None.
        sep: between the fields of a text file.
        columns: names of its columns, with commas, where it has no header.
        encoding: of its text.
        max_length: tokens a text is cut to, and the length of a block in language modelling.
        limits: at most so many examples (or blocks of text) of a split, e.g. ``{"train": 4000}``; each label stays.
        seed: seed of the cuts and limits of the data.

    Raises:
        InputError: anything wrong with the model, the data, or the two together.
    """
    if kind not in ("auto", *KINDS):
        raise InputError(f"--kind {kind}: choose auto, {', '.join(KINDS)}")
    checkpoint = None if model is None else find_model(model)
    labelled = {"auto": None, "causal-lm": False}.get(kind, True)
    read = read_data(
        data,
        labelled=labelled,
        text_column=text_column,
        label_column=label_column,
        sep=sep,
        columns=columns,
        encoding=encoding,
        seed=seed,
    )
    kind = _kind(read, kind)
    checkpoint = checkpoint or find_model(None, kind)
    shrink = partial(limit, limits=limits or {}, seed=seed, notes=read.notes)
    if kind != "causal-lm":
        read = replace(read, splits=shrink(read.splits))
    weights = check_weights(checkpoint)
    with quiet():
        base = load_base(checkpoint, kind, read.labels)
        encoded, collator, processor = _encode(read, kind, checkpoint, base.model, max_length, shrink)
    content = [weights, read.digest(), kind, max_length, sorted((limits or {}).items()), seed]
    fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return Task(
        kind,
        checkpoint.name,
        read.name,
        read.labels,
        *encoded,
        collator,
        processor,
        fingerprint,
        max_length,
        base,
        read,
    )


def _kind(data: Data, wanted: str) -> str:
    found = "text-classification" if data.labels else "causal-lm"
    if data.kind == "image":
        found = "image-classification"
    if data.kind == "image" and data.labels is None:
        raise InputError(f"--data {data.name} has images without labels; images are for classification")
    if wanted not in ("auto", found):
        raise InputError(f"--kind {wanted} does not suit --data {data.name}, which is for {found}")
    return found


def _encode(
    data: Data,
    kind: str,
    checkpoint: Checkpoint,
    model: Any,
    max_length: int,
    shrink: Callable[[Mapping[str, Split]], dict[str, Split]],
) -> tuple[tuple[Examples, Examples, Examples], Collator, Any]:
    train, validation, test = (data.splits[part] for part in PARTS)
    if kind == "image-classification":
        recipe = image_recipe(checkpoint, model.config, train.inputs[0])
        images = (
            Images(train, recipe.prepare),
            Images(validation, recipe.prepare),
            Images(test, recipe.prepare),
        )
        return images, recipe, recipe.processor
    from transformers import DataCollatorWithPadding, default_data_collator

    tokenizer = load_tokenizer(checkpoint, model, kind)
    check_length(max_length, tokenizer, model.config)
    if kind == "text-classification":
        encode = partial(tokenised, tokenizer=tokenizer, max_length=max_length)
        return (
            (encode(train), encode(validation), encode(test)),
            DataCollatorWithPadding(tokenizer),
            tokenizer,
        )
    blocks = shrink({p: Split(list(token_blocks(data.splits[p], tokenizer, max_length, p))) for p in PARTS})
    rows = {
        part: Rows([{"input_ids": b, "labels": b} for b in split.inputs]) for part, split in blocks.items()
    }
    return (rows["train"], rows["validation"], rows["test"]), default_data_collator, tokenizer
