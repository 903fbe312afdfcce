"""Train, validation and test: cut where they are missing, checked, and limited in size.

Splits that are not there are made, always the same way for one seed:

- files for train, validation and test are taken as they are;
- no test: the validation split is the test split (the habit with public development sets);
- no train: the validation split is the train split;
- no validation (any more): a tenth of train becomes it;
- one file only: 80 % train, 10 % validation, 10 % test.

Cuts are stratified by label; a plain text is cut by position, at line ends. Then limits are applied, stratified too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eckart.errors import InputError

HELD_OUT = 0.1
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Examples of one split: inputs (texts, pairs, images, conversations), labels (indices of classes, numbers, or a
    0 or 1 for each label), and where each came from."""

    inputs: Sequence[Any]
    labels: list[Any] | None = None
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def classes(self) -> list[int] | None:
        """The labels where each is the index of one class: what cuts keep the shares of."""
        return self.labels if self.labels and isinstance(self.labels[0], int) else None

    def take(self, indices: Sequence[int]) -> Split:
        """The examples at ``indices``, in that order."""
        return Split(
            [self.inputs[i] for i in indices],
            None if self.labels is None else [self.labels[i] for i in indices],
            None if self.groups is None else [self.groups[i] for i in indices],
        )


def complete(
    splits: dict[str, Split], names: list[str] | None, seed: int, notes: list[str]
) -> dict[str, Split]:
    """Make the splits that are missing by the rules above.

    Raises:
        InputError: an empty split, or a label that is not in every one.
    """
    splits = dict(splits)
    if len(splits) == 1:
        whole = next(iter(splits.values()))
        rest, test = _cut(whole, HELD_OUT, seed, names)
        train, validation = _cut(rest, HELD_OUT / (1 - HELD_OUT), seed + 1, names)
        notes.append("one split given: cut into 80 % train, 10 % validation, 10 % test")
        splits = {"train": train, "validation": validation, "test": test}
    if "test" not in splits:
        splits["test"] = splits.pop("validation")
        notes.append("no test split given: the validation split is the test split")
    if "train" not in splits:
        splits["train"] = splits.pop("validation")
        notes.append("no train split given: the validation split is the train split")
    if "validation" not in splits:
        splits["train"], splits["validation"] = _cut(splits["train"], HELD_OUT, seed, names)
        notes.append("validation: a tenth of the train split")
    if any(not len(splits[part]) for part in PARTS):
        size = sum(map(len, splits.values()))
        raise InputError(f"--data: {size} examples are too few for train, validation and test; give more")
    _check_labels(splits, names)
    return splits


def _check_labels(splits: Mapping[str, Split], names: list[str] | None) -> None:
    if names is None:
        return
    present = {part: set(splits[part].labels or ()) for part in PARTS}
    for part in PARTS:
        for label, name in enumerate(names):
            if label not in present[part]:
                where = next(other for other in PARTS if label in present[other])
                score = all(other.lstrip("-").isdigit() for other in names)
                raise InputError(
                    f"--data: label {name!r} is missing from the {part} split while {where} has it; "
                    "drop these rows, or give one file and let it be split"
                    + ("; if the labels are a score, say --kind regression" if score else "")
                )


def _cut(split: Split, share: float, seed: int, names: list[str] | None) -> tuple[Split, Split]:
    """Cut off ``share`` of a split: stratified, or at a line end near that position for one plain text."""
    if split.labels is None and len(split) == 1 and isinstance(split.inputs[0], str):
        text = split.inputs[0]
        at = round(len(text) * (1 - share))
        end = text.rfind("\n", 0, at) + 1 or at
        return replace(split, inputs=[text[:end]]), replace(split, inputs=[text[end:]])
    if names and split.classes and (rare := Counter(split.classes).most_common()[-1])[1] < 2:
        raise InputError(
            f"--data: label {names[rare[0]]!r} has too few examples to be in every split; 3 are needed"
            + ("; if the labels are a score, say --kind regression" if names[0].lstrip("-").isdigit() else "")
        )
    chosen = sample(split.classes, len(split), max(1, round(len(split) * share)), seed)
    held = set(chosen)
    return split.take([i for i in range(len(split)) if i not in held]), split.take(chosen)


def limit(
    splits: Mapping[str, Split], limits: Mapping[str, int], seed: int, notes: list[str]
) -> dict[str, Split]:
    """Keep at most ``limits[split]`` examples in the same proportions of labels, but one of each label at least.

    Raises:
        InputError: an unknown split, or a limit below 1.
    """
    kept = dict(splits)
    for part, number in limits.items():
        if part not in splits or number < 1:
            raise InputError(f"--limit {part}={number}: give train, validation or test, and at least 1")
        whole = splits[part]
        if number < len(whole):
            kept[part] = whole.take(sample(whole.classes, len(whole), number, seed))
            notes.append(f"{part}: {len(kept[part]):,} of {len(whole):,} examples")
    return kept


def sample(labels: Sequence[int] | None, size: int, number: int, seed: int) -> list[int]:
    """Draw ``number`` of ``size`` indices, in order; every class keeps its share (largest remainder, at least one).

    scikit-learn's stratified split is not used: it may leave a rare class out and refuses one with a single example.
    """
    generator = np.random.default_rng(seed)
    if labels is None:
        return sorted(generator.permutation(size)[:number].tolist())
    classes, counts = np.unique(labels, return_counts=True)
    number = max(number, len(classes))
    exact = counts * number / size
    quota = np.maximum(1, np.floor(exact).astype(int))
    for i in np.argsort(quota - exact, kind="stable"):
        quota[i] += quota.sum() < number
    while quota.sum() > number:
        quota[np.argmax(quota)] -= 1
    return sorted(_draw(np.asarray(labels), classes, quota, generator))


def _draw(
    labels: np.ndarray, classes: np.ndarray, quota: np.ndarray, generator: np.random.Generator
) -> Iterator[int]:
    for label, number in zip(classes, quota, strict=True):
        yield from generator.permutation(np.flatnonzero(labels == label))[:number].tolist()
