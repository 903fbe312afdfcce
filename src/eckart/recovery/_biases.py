"""Mean, row and column biases of ratings: damped means, alternated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eckart.recovery._ratings import Observations

ROUNDS, ROW_DAMPING, COLUMN_DAMPING = 10, 15.0, 10.0
"""Alternations, and how many observations of zero stand beside those of a row or column."""


@dataclass(frozen=True)
class Biases:
    """M_ij ≈ mean + rows_i + cols_j."""

    mean: float
    rows: np.ndarray
    cols: np.ndarray

    def of(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """The bias of these entries."""
        return (self.mean + self.rows[rows] + self.cols[cols]).astype(self.rows.dtype)


def fit_biases(data: Observations, wanted: bool) -> Biases:
    """b_i = Σ_j w (M_ij − μ − b′_j) / (Σ_j w + damping), and b′_j likewise; zeros where not wanted."""
    dtype = data.values.dtype
    rows, cols = (np.zeros(size, dtype) for size in data.shape)
    if not wanted:
        return Biases(0.0, rows, cols)
    mass = data.mass()
    mean = float(mass @ data.values / mass.sum())
    for _ in range(ROUNDS):
        cols = column_biases(data, mean, rows)
        rows = row_biases(data, mean, cols)
    return Biases(mean, rows, cols)


def row_biases(data: Observations, mean: float, cols: np.ndarray) -> np.ndarray:
    """The biases of rows, given those of the columns."""
    return _damped(data, data.values - mean - cols[data.cols], 0, ROW_DAMPING)


def column_biases(data: Observations, mean: float, rows: np.ndarray) -> np.ndarray:
    """The biases of columns, given those of the rows."""
    return _damped(data, data.values - mean - rows[data.rows], 1, COLUMN_DAMPING)


def _damped(data: Observations, rest: np.ndarray, axis: int, damping: float) -> np.ndarray:
    index, size = (data.rows, data.cols)[axis], data.shape[axis]
    mass = data.mass()
    total = np.bincount(index, mass * rest, minlength=size)
    return (total / (np.bincount(index, mass, minlength=size) + damping)).astype(data.values.dtype)
