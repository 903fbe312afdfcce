"""Observed entries of a matrix: sorted, merged, compressed by row or by column; never densified."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eckart.errors import InputError
from eckart.linalg.completion import Compressed


@dataclass(frozen=True)
class Observations:
    """Entries sorted by row, then column; ``repeats`` says how many observations stand in each."""

    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray
    weights: np.ndarray | None
    repeats: np.ndarray | None
    shape: tuple[int, int]

    def counts(self, axis: int) -> np.ndarray:
        """Observations of each row (0) or column (1)."""
        index, size = ((self.rows, self.shape[0]), (self.cols, self.shape[1]))[axis]
        return np.bincount(index, self.repeats, minlength=size)

    def mass(self) -> np.ndarray:
        """The weight of each entry in a sum over observations."""
        return np.ones(len(self.values)) if self.weights is None else self.weights

    def compress(
        self, values: np.ndarray, axis: int, kept: np.ndarray | None, like: torch.Tensor
    ) -> Compressed:
        """By row (0) or by column (1), with these values in place of the observed; only the ``kept`` entries."""
        index, other, size = (
            (self.rows, self.cols, self.shape[0]),
            (self.cols, self.rows, self.shape[1]),
        )[axis]
        order = np.arange(len(values)) if axis == 0 else np.argsort(index, kind="stable")
        order = order if kept is None else order[kept[order]]
        pointer = np.concatenate([[0], np.cumsum(np.bincount(index[order], minlength=size))])
        weights = None if self.weights is None else torch.as_tensor(self.weights[order]).to(like)
        tensors = torch.as_tensor(pointer), torch.as_tensor(other[order])
        return Compressed(
            *(t.to(like.device) for t in tensors), torch.as_tensor(values[order]).to(like), weights
        )

    def joined(self, other: Observations, shape: tuple[int, int]) -> Observations:
        """These observations and others of a matrix of that shape."""
        both = [np.concatenate([a, b]) for a, b in ((self.rows, other.rows), (self.cols, other.cols))]
        weighted = self.weights is not None or other.weights is not None
        mass = np.concatenate([self.mass(), other.mass()]) if weighted else None
        repeats = np.concatenate([self.repeated(), other.repeated()])
        return merge(*both, np.concatenate([self.values, other.values]), mass, repeats, shape)

    def repeated(self) -> np.ndarray:
        return np.ones(len(self.values), np.int64) if self.repeats is None else self.repeats


@dataclass(frozen=True)
class Ids:
    """The names of rows and columns, sorted, where the data came with names."""

    rows: np.ndarray
    cols: np.ndarray

    def find(self, axis: int, names: Any) -> np.ndarray:
        """Place of each name; −1 where it is unknown."""
        import pandas as pd

        known, asked = pd.Index((self.rows, self.cols)[axis]), pd.Index(np.asarray(names))
        if known.inferred_type == "string" and asked.inferred_type == "integer":
            asked = asked.astype(str)  # names are text whatever they look like: 1 asks for "1"
        return known.get_indexer(asked)


def merge(
    rows: Any, cols: Any, values: Any, weights: Any, repeats: Any, shape: tuple[int, int]
) -> Observations:
    """In order of (row, column), entries given more than once merged into their mean, of the weight of all."""
    key = rows * shape[1] + cols
    order = np.argsort(key, kind="stable")
    key, rows, cols, values = key[order], rows[order], cols[order], values[order]
    weights = None if weights is None else weights[order]
    repeats = None if repeats is None else repeats[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    if len(first) == len(key):
        single = repeats is None or (repeats == 1).all()
        return Observations(rows, cols, values, weights, None if single else repeats, shape)
    warnings.warn(
        f"{len(key) - len(first)} entries are given more than once: each counts as another observation of the entry",
        UserWarning,
        stacklevel=5,
    )
    mass = np.ones(len(values)) if weights is None else weights
    total = np.add.reduceat(mass, first)
    mean = np.add.reduceat(mass * values, first) / total
    count = np.add.reduceat(np.ones(len(values), np.int64) if repeats is None else repeats, first)
    return Observations(rows[first], cols[first], mean.astype(values.dtype), total, count, shape)


def whole_numbers(name: str, index: Any) -> np.ndarray:
    """Indices as int64.

    Raises:
        InputError: something else than whole numbers.
    """
    index = np.asarray(index).ravel()
    if index.dtype.kind not in "iu" and not (index.dtype.kind == "f" and (index == np.floor(index)).all()):
        raise InputError(
            f"{name} are {index.dtype}: give whole numbers, or a pandas frame for ids of another kind"
        )
    return index.astype(np.int64)


def relabel(data: Observations, axis: int, labels: Any) -> np.ndarray:
    """The row or column index of each observation, where row r of the data is row ``labels[r]`` of the matrix.

    Raises:
        InputError: not one label for each row or column, negative or repeated ones.
    """
    index, name = (data.rows, data.cols)[axis], ("rows", "cols")[axis]
    if labels is None:
        return index
    labels = whole_numbers(name, labels)
    if len(labels) != data.shape[axis]:
        raise InputError(f"{name} holds {len(labels)} indices: X has {data.shape[axis]} {name}")
    if labels.min() < 0 or len(np.unique(labels)) != len(labels):
        raise InputError(f"{name} holds negative or repeated indices")
    return labels[index]
