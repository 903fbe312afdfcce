"""Mean, row and column biases of ratings: damped means to start from, then one more column of each factor.

M_ij ≈ μ + κ β_i + κ β′_j + u_i · v_j        the ridge c of (u_i, β_i) is one of c/κ² on the bias κ β_i
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from eckart.linalg.completion import Compressed, Solve
from eckart.recovery._ratings import PIECE, Observations

ROUNDS, DAMPING = 10, (15.0, 10.0)
"""Alternations, and how many observations of zero stand beside those of a row and of a column."""

BIAS_RIDGE = {"none": 3.0, "count": 0.03}
"""Ridge of a bias beside the factors, in observations; where ridges go with the count, in shares of the row's."""


@dataclass(frozen=True)
class Biases:
    """M_ij ≈ mean + rows_i + cols_j."""

    mean: float
    rows: np.ndarray
    cols: np.ndarray

    def of(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """The bias of these entries."""
        total: np.ndarray = self.rows[rows]
        total += self.mean
        total += self.cols[cols]
        return total


def fit_biases(data: Observations, wanted: bool) -> Biases:
    """b_i = Σ_j w (M_ij − μ − b′_j) / (Σ_j w + damping), and b′_j likewise; zeros where not wanted."""
    dtype = data.values.dtype
    rows, cols = (np.zeros(size, dtype) for size in data.shape)
    if not wanted:
        return Biases(0.0, rows, cols)
    mean = float(np.average(data.values, weights=data.weights))
    for _ in range(ROUNDS):
        cols = damped_means(data, data.values - mean - rows[data.rows], 1)
        rows = damped_means(data, data.values - mean - cols[data.cols], 0)
    return Biases(mean, rows, cols)


def solve_with_bias(solve: Solve, kappa: float, mean: float, cols: Tensor) -> Solve:
    """A solver of factors whose last column is β: the mean and the other side's bias are taken from the values.

    Args:
        solve: of the factors without.
        kappa: κ.
        mean: μ.
        cols: b′, where the columns start.
    """

    def both(data: Compressed, other: Tensor, ridge: Tensor, start: Tensor | None) -> Tensor:
        value, known = data.value.clone(), (kappa * other[:, -1]).add_(mean)
        for part, column in zip(value.split(PIECE), data.column.split(PIECE), strict=True):
            part.sub_(known.index_select(0, column))
        rest = replace(data, value=value)
        design = torch.cat([other[:, :-1], torch.full_like(other[:, :1], kappa)], 1)
        if start is None:
            start = torch.cat([other.new_zeros(len(cols), other.shape[1] - 1), cols.unsqueeze(1) / kappa], 1)
        return solve(rest, design, ridge, start)

    return both


def damped_means(data: Observations, rest: np.ndarray, axis: int) -> np.ndarray:
    """Σ w rest / (Σ w + damping) of each row (0) or column (1)."""
    index, size = (data.rows, data.cols)[axis], data.shape[axis]
    weights = data.weights
    total, mass = np.zeros(size), np.zeros(size)
    for start in range(0, len(index), PIECE):
        part = slice(start, start + PIECE)
        known = None if weights is None else weights[part]
        total += np.bincount(index[part], rest[part] if known is None else known * rest[part], minlength=size)
        mass += np.bincount(index[part], known, minlength=size)
    return (total / (mass + DAMPING[axis])).astype(data.values.dtype)
