"""Tables with outliers and missing entries as measurements of their low-rank part, and rows placed in its row space."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn.functional import pad

from eckart.errors import InputError
from eckart.linalg.completion import Compressed, absolute_loss, least_absolute
from eckart.linalg.operators import EntryOperator
from eckart.linalg.subgradient import weighted_quantile
from eckart.recovery import _forms
from eckart.recovery._base import FLOATS, to_numpy, validate_data
from eckart.recovery._measured import RESOLVED, Factors, Measured
from eckart.recovery._ratings import Observations
from eckart.recovery._sensing import SensingEstimator, is_operator

SQUARE = 1e-6
"""Residuals of a new row below this share of the table's typical entry count as squares, so that a fit has an end."""


NEAR, ROUNDS = 10 * RESOLVED, 2
"""A descent that leaves less than this share of a typical entry may be that of a table without noise, whose rows and
columns are then solved for in turn, so often."""


class TableEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, SensingEstimator):
    """The side of `RobustLowRank` that reads tables (n, d): NaN, or what a sparse matrix does not store, is missing."""

    components_: np.ndarray
    effective_rank_: int
    outlier_mask_: np.ndarray

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _read_table(
        self, X: Any, sample_weight: Any, rectangular: str | None
    ) -> tuple[EntryOperator, Tensor, Tensor | None]:
        """The observed entries as measurements, their values and weights."""
        data = self._observed(X, reset=True, sample_weight=sample_weight)
        if rectangular and data.shape[0] != data.shape[1]:
            raise InputError(f"X is a table of shape {data.shape}: {rectangular}")
        dtype, device = self._place(data.values.dtype)
        target = torch.as_tensor(data.values).to(device, dtype)
        weights = None if data.weights is None else torch.as_tensor(data.weights).to(device, dtype)
        return EntryOperator(data.rows, data.cols, data.shape).to(dtype, device), target, weights

    def _observed(self, X: Any, reset: bool, sample_weight: Any = None) -> Observations:
        if reset and (X is None or getattr(X, "ndim", 2) != 2 or is_operator(X)):
            raise InputError("y is None: give y with measurements, or a table (n, d) alone")
        X = validate_data(
            self, X, reset=reset, accept_sparse="csr", dtype=FLOATS, ensure_all_finite="allow-nan"
        )
        return _forms.read(X, sample_weight=sample_weight, all_observed=True)[0]

    def _lay_out(self, operator: EntryOperator, target: Tensor) -> None:
        """`outlier_mask_` in the shape of the table, and `sparse_`."""
        gross = self.outlier_mask_
        rows, cols = (to_numpy(index)[gross] for index in (operator.rows, operator.cols))
        rest = to_numpy(target - operator.forward(*(factor.to(target) for factor in self._factors())))
        self.sparse_ = sp.csr_array((rest[gross], (rows, cols)), shape=operator.shape_in)
        self.outlier_mask_ = np.zeros(operator.shape_in, bool)
        self.outlier_mask_[rows, cols] = True

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def transform(self, X: Any) -> np.ndarray:
        """Coordinates of rows in the row space of the matrix, (rows, r′): argmin Σ_j |x_j − (z components_)_j|.

        Components beyond `effective_rank_` are no part of that space: their coordinates are zero.

        Args:
            X: (rows, d), with outliers and missing entries.

        Raises:
            NotFittedError: before `fit`.
            ValueError: another width than that of the matrix.
        """
        check_is_fitted(self)
        return self._coordinates(self._observed(X, reset=False))

    def _coordinates(self, data: Observations) -> np.ndarray:
        if data.shape[1] != self.components_.shape[1]:
            raise InputError(f"X has {data.shape[1]} columns: the matrix has {self.components_.shape[1]}")
        V = torch.as_tensor(self.components_[: self.effective_rank_].T.copy())
        floor = (
            SQUARE
            * float(
                np.sqrt(np.square(self.eigenvalues_).sum() / (len(self.factor_) * len(self.right_factor_)))
            )
            or 1.0
        )
        Z = least_absolute(data.compress(data.values, 0, None, V), V, floor)
        return to_numpy(pad(Z, (0, len(self.components_) - V.shape[1])))

    def inverse_transform(self, Z: Any) -> np.ndarray:
        """Z components_, (rows, d): the low-rank part of rows from their coordinates."""
        check_is_fitted(self)
        rows: np.ndarray = np.asarray(Z) @ self.components_
        return rows

    def _score_table(self, X: Any, sample_weight: Any) -> float:
        check_is_fitted(self)
        data = self._observed(X, reset=False, sample_weight=sample_weight)
        fitted = self.inverse_transform(self._coordinates(data))
        residual = torch.as_tensor(np.abs(data.values - fitted[data.rows, data.cols]))
        weights = None if data.weights is None else torch.as_tensor(data.weights).to(residual)
        return -float(weighted_quantile(residual, 0.5, weights))


def polished(task: Measured, factors: Factors) -> Factors:
    """Factors of a table without noise, exact where a descent is only near: rows, then columns, by absolute deviations.

    What a descent leaves of a wide spectrum, or of a single row, goes at once. Others come back as they are.

    Args:
        task: the observed entries, by row.
        factors: U and V; spare columns come back as zero.
    """
    kept, operator = task.clear(factors), task.operator
    if task.symmetric or task.median(task.rest(kept)) > NEAR * task.median():
        return factors
    assert isinstance(operator, EntryOperator), "a table is its entries"
    rows, cols, values = (to_numpy(part) for part in (operator.rows, operator.cols, task.y))
    weights = None if task.weights is None else to_numpy(task.weights)
    data = Observations(rows, cols, values, weights, None, operator.shape_in)
    by_row, by_column = (data.compress(values, axis, None, task.y) for axis in (0, 1))
    floor = SQUARE * float(task.shares() @ task.y.abs())
    U, V = kept
    for _ in range(ROUNDS):
        U = nearer(by_row, V, U, floor)
        V = nearer(by_column, U, V, floor)
    found = task.clear((U, V))
    if task.median(task.rest(found)) > RESOLVED * task.median():
        return factors
    spare = factors[0].shape[1] - found[0].shape[1]
    return pad(found[0], (0, spare)), pad(found[1], (0, spare))


def nearer(data: Compressed, known: Tensor, found: Tensor, floor: float) -> Tensor:
    """Of each row what is nearer to its entries, ``found`` or its least absolute deviations."""
    new = least_absolute(data, known, floor)
    better = absolute_loss(data, new, known) < absolute_loss(data, found, known)
    return torch.where(better.unsqueeze(1), new, found)
