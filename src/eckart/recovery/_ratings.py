"""Observed entries of a matrix: sorted, merged, compressed by row or by column; never densified."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from eckart.errors import InputError
from eckart.linalg.completion import Compressed

PIECE = 2**18
"""Observations that are worked on at once, so that nothing of the size of all of them is made on the way."""


def count(index: np.ndarray, size: int, weights: np.ndarray | None = None) -> np.ndarray:
    """`numpy.bincount`, which widens what it is given, in pieces."""
    total = np.zeros(size, np.int64 if weights is None else np.float64)
    for start in range(0, len(index), PIECE):
        part = slice(start, start + PIECE)
        total += np.bincount(index[part], None if weights is None else weights[part], minlength=size)
    return total


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
        return count((self.rows, self.cols)[axis], self.shape[axis], self.repeats)

    def mass(self) -> np.ndarray:
        """The weight of each entry in a sum over observations."""
        return np.broadcast_to(1.0, len(self.values)) if self.weights is None else self.weights

    def compress(
        self, values: np.ndarray, axis: int, kept: np.ndarray | None, like: torch.Tensor
    ) -> Compressed:
        """By row (0) or by column (1), with these values in place of the observed; only the ``kept`` entries."""
        if kept is not None:
            return self.only(kept).compress(values[kept], axis, None, like)
        pointer, others, given = self.pointer(), self.cols, (values, self.weights)
        if axis == 1:
            turned = self._by_column(values)
            pointer, others = turned.indptr, turned.indices
            given = turned.data, None if self.weights is None else self._by_column(self.weights).data
        weights = None if given[1] is None else torch.as_tensor(given[1]).to(like)
        starts = torch.as_tensor(pointer.astype(np.int64, copy=False)).to(like.device)
        return Compressed(
            starts, torch.as_tensor(others).to(like.device), torch.as_tensor(given[0]).to(like), weights
        )

    def _by_column(self, values: np.ndarray) -> Any:
        """The entries in order of (column, row), by counting."""
        pointer = self.pointer()
        if len(values) <= np.iinfo(self.cols.dtype).max:
            pointer = pointer.astype(self.cols.dtype)  # SciPy would widen the columns to what it finds here
        return sp.csr_array((values, self.cols, pointer), shape=self.shape).tocsc()

    def pointer(self) -> np.ndarray:
        """Where each row begins, and the end."""
        return np.concatenate([[0], np.cumsum(count(self.rows, self.shape[0]))])

    def some_rows(self, entries: int, random: np.random.RandomState) -> Observations:
        """Whole rows drawn at random, of about so many entries, as a matrix of their own."""
        counts = np.diff(self.pointer())
        order = random.permutation(self.shape[0])
        taken = np.sort(order[: 1 + int(np.searchsorted(counts[order].cumsum(), entries))])
        place = np.full(self.shape[0], -1, self.rows.dtype)
        place[taken] = np.arange(len(taken))
        part = self.only(place[self.rows] >= 0)
        return replace(part, rows=place[part.rows], shape=(len(taken), self.shape[1]))

    def only(self, kept: np.ndarray) -> Observations:
        """These entries of the same matrix alone."""
        weights, repeats = (None if x is None else x[kept] for x in (self.weights, self.repeats))
        return Observations(self.rows[kept], self.cols[kept], self.values[kept], weights, repeats, self.shape)

    def confident(self, alpha: float) -> Observations:
        """Counts r as confidences: c (1 − x)² with c = 1 + α r is α r (1 + 1/(α r) − x)² + x² and a constant.

        The x² is what `RowSolver` adds for every entry.

        Raises:
            InputError: a count below zero, or none above.
        """
        if (self.values < 0).any():
            raise InputError(
                f"implicit=True takes counts: X holds {self.values.min():.6g}, drop what is below zero"
            )
        seen = self.only(self.values > 0)
        if not len(seen.values):
            raise InputError("implicit=True takes counts: X holds none above zero")
        extra = alpha * seen.values * seen.mass()
        return replace(seen, values=(1 + 1 / extra).astype(self.values.dtype), weights=extra)

    def joined(self, other: Observations, shape: tuple[int, int]) -> Observations:
        """These observations and others of a matrix of that shape."""
        rows, cols = np.append(self.rows, other.rows), np.append(self.cols, other.cols)
        weighted = self.weights is not None or other.weights is not None
        mass = np.concatenate([self.mass(), other.mass()]) if weighted else None
        repeats = np.concatenate([self.repeated(), other.repeated()])
        return merge(rows, cols, np.concatenate([self.values, other.values]), mass, repeats, shape)

    def repeated(self) -> np.ndarray:
        """How many observations stand in each entry."""
        return np.ones(len(self.values), np.int64) if self.repeats is None else self.repeats


@dataclass(frozen=True)
class Ids:
    """The names of rows and columns, sorted, where the data came with names."""

    rows: np.ndarray
    cols: np.ndarray

    def find(self, axis: int, names: Any) -> np.ndarray:
        """Place of each name; −1 where it is unknown."""
        import pandas as pd

        known, asked = (pd.Index(column) for column in alike((self.rows, self.cols)[axis], names))
        place: np.ndarray = known.get_indexer(asked)
        return place


def alike(*columns: Any) -> list[np.ndarray]:
    """Columns of names of which one person would say which are the same: where some are text, all are.

    A name is text whatever it looks like: 1, 1.0 and "1" are the same.
    """
    arrays = [np.asarray(column) for column in columns]
    kinds = {
        isinstance(name, str)
        for array in arrays
        for name in (array.tolist() if array.dtype.kind in "OSU" else array[:1].tolist())
    }
    return [_as_text(array) if kinds == {True, False} else array for array in arrays]


def _as_text(names: np.ndarray) -> np.ndarray:
    text = np.empty(names.shape, dtype=object)
    text[:] = [
        str(int(name)) if isinstance(name, float) and name.is_integer() else str(name)
        for name in names.tolist()
    ]
    return text


def merge(
    rows: Any, cols: Any, values: Any, weights: Any, repeats: Any, shape: tuple[int, int]
) -> Observations:
    """In order of (row, column), entries given more than once merged into their mean, of the weight of all."""
    key = rows.astype(np.int64) * shape[1] + cols
    small = np.int32 if max(shape) <= np.iinfo(np.int32).max else np.int64
    rows, cols = rows.astype(small), cols.astype(small)
    if (key[1:] < key[:-1]).any():
        order = np.argsort(key, kind="stable")
        key, rows, cols, values = key[order], rows[order], cols[order], values[order]
        weights = None if weights is None else weights[order]
        repeats = None if repeats is None else repeats[order]
    if (key[1:] > key[:-1]).all():
        single = repeats is None or (repeats == 1).all()
        return Observations(rows, cols, values, weights, None if single else repeats, shape)
    first = np.flatnonzero(np.diff(key, prepend=-1))
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
    given: np.ndarray = np.asarray(index).ravel()
    if given.dtype.kind not in "iu" and not (given.dtype.kind == "f" and (given == np.floor(given)).all()):
        raise InputError(
            f"{name} are {given.dtype}: give whole numbers, or a pandas frame for ids of another kind"
        )
    return given.astype(np.int64, copy=False)


def relabel(data: Observations, axis: int, labels: Any) -> np.ndarray:
    """The row or column index of each observation, where row r of the data is row ``labels[r]`` of the matrix.

    Raises:
        InputError: not one label for each row or column, negative or repeated ones.
    """
    index, name = (data.rows, data.cols)[axis], ("rows", "cols")[axis]
    if labels is None:
        return index
    place = whole_numbers(name, labels)
    if len(place) != data.shape[axis]:
        raise InputError(f"{name} holds {len(place)} indices: X has {data.shape[axis]} {name}")
    if place.min() < 0 or len(np.unique(place)) != len(place):
        raise InputError(f"{name} holds negative or repeated indices")
    moved: np.ndarray = place[index]
    return moved
