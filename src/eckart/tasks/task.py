"""A task: a pretrained model and a data set, encoded once, with the score by which methods are compared."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import Float

from eckart.data.labels import CLASSES, outnumbered
from eckart.data.read import Data, read_data
from eckart.data.splits import PARTS, limit
from eckart.quiet import quiet
from eckart.tasks.forgetting import General, read_general
from eckart.tasks.harness import Harness, load_harness
from eckart.tasks.heads import Base, load_base
from eckart.tasks.instruments import device
from eckart.tasks.kinds import KINDS, RECIPES, Kind, kind_of
from eckart.tasks.kinds.chat import Chat
from eckart.tasks.kinds.kind import Collator, Encoded, Examples
from eckart.tasks.memory import check_machine
from eckart.tasks.metrics import Outcomes
from eckart.tasks.options import (
    Memory,
    MemoryOptions,
    Words,
    check_alone,
    check_kind,
    check_recipe,
    check_words,
)
from eckart.tasks.pretrained import check_weights, find_model
from eckart.tasks.weights import weigh


@dataclass(frozen=True)
class Task:
    """What every method of a comparison shares: model, data, head, score.

    Attributes:
        form: the kind of task, which encodes, scores and shows examples.
        labels: class names; None where there are no classes.
        train, validation, test: encoded examples, dicts of token ids (or pixels) and ``labels``.
        collator: makes a batch of examples.
        processor: the tokenizer or image processor, to save with a trained model.
        fingerprint: SHA-256 of model files, data and options; equal fingerprints mean equal tasks.
        max_length: tokens of an example at most.
        memory: how small the base is in training.
        general: text on which forgetting is measured.
        harness: what a trained model is asked besides.
    """

    form: Kind
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
    memory: Memory
    base: Base = field(repr=False)
    data: Data = field(repr=False)
    general: General | None = field(default=None, repr=False)
    harness: Harness | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        form: Kind,
        encoded: Encoded,
        base: Base,
        *,
        model: str,
        fingerprint: str,
        max_length: int,
        memory: Memory,
        general: General | None = None,
        harness: Harness | None = None,
    ) -> Task:
        """A task of examples that are encoded.

        Args:
            form: the kind of task, with its data.
            encoded: the splits.
            base: the model.
            model: its name.
            fingerprint, max_length, memory, general, harness: as the attributes.

        Raises:
            InputError: a metric that the kind has not.
        """
        data = form.data
        return cls(
            form,
            model,
            data.name,
            data.labels if data.target == CLASSES else None,
            *(encoded.train, encoded.validation, encoded.test, encoded.collator, encoded.processor),
            fingerprint,
            max_length,
            memory,
            base,
            data,
            general,
            harness,
        )

    @property
    def kind(self) -> str:
        """Name of the kind, such as "text-classification"."""
        return self.form.name

    @property
    def metric(self) -> str:
        """Name of the score, such as "accuracy" or "bits_per_token"."""
        return self.form.decides.name

    @property
    def greater_is_better(self) -> bool:
        """Whether a greater score is a better one."""
        return self.form.decides.greater_is_better

    @property
    def training(self) -> Mapping[str, Any]:
        """Fields of `TrainingArguments` that the task has its own values of."""
        return self.form.training

    @property
    def groups(self) -> list[str] | None:
        """Where each test example comes from, such as a file; None where each stands for itself."""
        return None if self.form.languages else self.data.splits["test"].groups

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

    @property
    def sequences(self) -> int:
        """Texts that an example is scored by, at most."""
        return self.form.sequences

    def given(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What of a batch the model takes."""
        return self.form.given(batch)

    def outcomes(self, outputs: Any, batch: Mapping[str, Any]) -> Outcomes:
        """What a model says of each example of a batch, and what is right, a row of numbers each.

        Args:
            outputs: what the model returns.
            batch: what it was given.
        """
        return self.form.outcomes(outputs, batch)

    def answered(self, model: Any, split: Examples, outcomes: Outcomes, batch_size: int) -> Outcomes:
        """The outcomes with what the model answers where it is asked to: all of a split where the exact match decides,
        some test examples where the user wants it beside."""
        if not isinstance(self.form, Chat):
            return outcomes
        size = len(outcomes)
        asked = self.form.words.generate if split is self.test else 0
        count = size if self.metric == "exact_match" else min(asked, size)
        if count:
            outcomes[:count, -1] = self.form.answered(model, split, count, batch_size)  # type: ignore[arg-type]
        return outcomes

    def scores(self, outcomes: Outcomes) -> tuple[Float[np.ndarray, " n"], dict[str, float]]:
        """The score of each example by the metric that decides, NaN for a run that diverged; and the other scores."""
        also = {
            name: value
            for name, metric in self.form.metrics.items()
            if name != self.metric and math.isfinite(value := metric.value(outcomes))
        }
        return self.form.decides.scores(outcomes), also

    def predictions(self, outcomes: Outcomes) -> list[int] | None:
        """The class that is said of each example; None where there are no classes."""
        return self.form.classes(outcomes)

    def trivial(self) -> tuple[str, Float[np.ndarray, " n"]]:
        """The predictor that looks at no input, and its score of each test example."""
        name, outcomes = self.form.trivial(self.train, self.test, self.base.model)
        return name, self.form.decides.scores(outcomes)

    def example(self, letters: int = 80) -> str:
        """The first training example as a person would write it down: its text, cut short, and its label."""
        return self.form.example(self.train, letters)

    def describe(self) -> dict[str, Any]:
        """The task in plain values, for a report: names, sizes, how often each label occurs, notes on the data."""
        counts = {part: self.data.counts(part) for part in PARTS if self.data.labels}
        return {
            "kind": self.kind,
            "model": self.model_name,
            "data": self.data_name,
            "columns": self.data.columns,
            "metric": self.metric,
            "also": [name for name in self.form.metrics if name != self.metric],
            "sizes": {part: len(getattr(self, part)) for part in PARTS},
            "labels": self.labels,
            "label_counts": counts,
            "head_modules": self.head_modules,
            "base_parameters": self.base.base_parameters,
            "head_parameters": self.base.head_parameters,
            "device": str(device()),
            **asdict(self.memory),
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
    metric: str | None = None,
    extract: str | None = None,
    generate: int = 0,
    class_weights: str | None = None,
    also: str | None = None,
    lm_eval: str | None = None,
    lm_eval_limit: int | None = None,
    task: str | None = None,
    recipe: str | None = None,
    seed: int = 0,
    **small: Unpack[MemoryOptions],
) -> Task:
    """Read a model and a data set and make a task of them.

    Args:
        model: a transformers model directory or hub name; None is an embedded one: for language modelling the code
            model, else all-MiniLM-L6-v2.
        data: see `eckart.data.read.read_data`; None is the docstrings of the standard library.
        kind: one of `eckart.tasks.options.KINDS`, or "auto": images, labels, conversations, or text alone decide it.
        text_column, label_column: of the text (or two, joined by a comma), of the labels; found by name when None.
        sep, columns, encoding: how a text file is written: between its fields, their names where it has no header.
        max_length: tokens a text is cut to, and the length of a block in language modelling.
        limits: at most so many examples (or blocks of text) of a split, e.g. ``{"train": 4000}``; each label stays.
        metric: the score that decides: see `eckart.tasks.choosing.chosen`.
        extract: what is compared of the answers of a chat model: see `eckart.tasks.kinds.chat.extractor`.
        generate: test examples that a chat model answers, for its exact match.
        class_weights: "balanced", for classification: see `eckart.tasks.weights`.
        also: a file of general text, for language models: see `eckart.tasks.forgetting`.
        lm_eval, lm_eval_limit: tasks on which a trained language model is scored too: see `eckart.tasks.harness`.
        task: all of this from a file of the user's, ``my_task.py:function``: see `eckart.tasks.own`.
        recipe: a published protocol, of `eckart.tasks.options.RECIPES`; its data are conversations.
        seed: seed of the cuts and limits of the data.
        small: how the model is made to fit, as `Memory` has it.

    Raises:
        InputError: anything wrong with the model, the data, or the two together.
    """
    check_kind(kind)
    kind = check_recipe(recipe, kind)
    words = Words(metric, extract, generate, class_weights, also, lm_eval, lm_eval_limit)
    memory = Memory(**small)
    check_words(kind, words)
    check_machine(memory)
    if task is not None:
        from eckart.tasks.own import load_own

        check_alone(
            task,
            model=model,
            data=data,
            text_column=text_column,
            label_column=label_column,
            metric=metric,
            class_weights=class_weights,
            also=also,
            lm_eval=lm_eval,
        )
        return load_own(task, max_length=max_length, limits=limits, seed=seed, memory=memory)
    checkpoint = None if model is None else find_model(model)
    labelled, target = KINDS[kind].reads if kind in KINDS else (None, None)
    read = read_data(
        data,
        labelled=labelled,
        target=target,
        text_column=text_column,
        label_column=label_column,
        sep=sep,
        columns=columns,
        encoding=encoding,
        seed=seed,
    )
    kind = kind_of(read, kind)
    check_words(kind, words)
    checkpoint = checkpoint or find_model(None, kind)
    shrink = partial(limit, limits=limits or {}, seed=seed, notes=read.notes)
    if not KINDS[kind].languages:
        read = replace(read, splits=shrink(read.splits))
    form = RECIPES.get(recipe or "", KINDS[kind])(read, words)
    _ = form.decides  # a metric that the kind has not is refused before anything is loaded
    if read.target == CLASSES and (told := outnumbered(read.labels or [], read.splits["train"].labels or [])):
        read.notes.append(told)
    weights = check_weights(checkpoint)
    with quiet():
        base = load_base(checkpoint, kind, form.outputs(), form.config(), memory)
        encoded = form.encode(checkpoint, base.model, max_length, shrink)
    if class_weights is not None:
        read.notes.append(weigh(base.model, read.labels or [], read.splits["train"].labels or []))
    general = None if also is None else read_general(also, encoded.processor, max_length, read.notes)
    asked = (lm_eval_limit, encoded.processor, kind == "chat")
    harness = None if lm_eval is None else load_harness(lm_eval, *asked)
    content = [weights, read.digest(), kind, max_length, sorted((limits or {}).items()), seed]
    content += [recipe] if recipe else []
    content += [] if general is None else [general.sha256]
    fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return Task.of(
        form,
        encoded,
        base,
        model=checkpoint.name,
        fingerprint=fingerprint,
        max_length=max_length,
        memory=memory,
        general=general,
        harness=harness,
    )
