"""What a completed matrix is good for: predictions, fold-in of new rows, filling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from eckart.errors import InputError
from eckart.linalg.completion import RowSolver
from eckart.recovery import _forms
from eckart.recovery._base import RecoveryTransformer, to_numpy
from eckart.recovery._biases import BIAS_RIDGE, Biases, damped_means
from eckart.recovery._ratings import Ids, Observations, whole_numbers


class CompletedMatrix(RecoveryTransformer):
    """The fitted side of `MatrixCompletion`. A row of zeros stands for whatever has no observation."""

    _data: Observations
    _ids: Ids | None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _set_model(self, U: Tensor, V: Tensor, biases: Biases) -> None:
        core = torch.linalg.qr(U).R @ torch.linalg.qr(V).R.mT
        self.row_factors_, self.components_ = to_numpy(U), to_numpy(V.mT.contiguous())
        dtype = self.row_factors_.dtype
        self.mean_ = biases.mean
        self.row_bias_, self.col_bias_ = biases.rows.astype(dtype), biases.cols.astype(dtype)
        self.singular_values_ = to_numpy(torch.linalg.svdvals(core))
        self.n_features_in_ = self.components_.shape[1]

    @property
    def row_ids_(self) -> np.ndarray | None:
        check_is_fitted(self)
        return None if self._ids is None else self._ids.rows

    @property
    def col_ids_(self) -> np.ndarray | None:
        check_is_fitted(self)
        return None if self._ids is None else self._ids.cols

    @property
    def train_rmse_(self) -> float:
        check_is_fitted(self)
        return float(self.loss_history_[-1])

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_is_fitted__(self) -> bool:
        return "row_factors_" in vars(self)

    def predict(self, rows: Any, cols: Any = None) -> np.ndarray:
        """M_ij of these pairs, one number each.

        Args:
            rows: indices of rows, or their names where the data had names; a frame with user and item columns or an
                array (pairs, 2) stands for both.
            cols: indices or names of columns, as many.

        Returns:
            Predictions; of an unknown name the mean and the other bias alone.

        Raises:
            NotFittedError: before `fit`.
            ValueError: indices out of range, or not as many rows as columns.
        """
        check_is_fitted(self)
        if cols is None:
            pairs = _forms.pairs_of(rows) if _forms.is_frame(rows) else np.asarray(rows).T
            if len(pairs) != 2:
                raise InputError(
                    f"rows has shape {np.shape(rows)}: give pairs (n, 2), a frame, or rows and cols"
                )
            rows, cols = pairs
        rows, cols = self._place_of(rows, 0), self._place_of(cols, 1)
        if len(rows) != len(cols):
            raise InputError(f"rows holds {len(rows)} and cols {len(cols)}: give as many of both")
        total = (
            self.mean_
            + np.where(rows < 0, 0, self.row_bias_[rows])
            + np.where(cols < 0, 0, self.col_bias_[cols])
        )
        known = np.flatnonzero((rows >= 0) & (cols >= 0))
        columns = self.components_.T
        for place in np.array_split(known, max(1, known.size * columns.shape[1] // 2**22)):
            total[place] += np.einsum("ij,ij->i", self.row_factors_[rows[place]], columns[cols[place]])
        return self._clipped(total.astype(self.row_factors_.dtype))

    def transform(self, X: Any) -> np.ndarray:
        """Factors of rows from what is observed of them, (rows, k): each the regression on `components_`.

        Args:
            X: in any form that `fit` takes, with the columns of the fit; the rows may be new. In a frame, items that
                were not there in the fit are left out, and rows come in the order of their names.
        """
        check_is_fitted(self)
        return to_numpy(self._fold_in(self._read_rows(X))[0])

    def inverse_transform(self, Z: Any) -> np.ndarray:
        """Whole rows of the matrix from their factors, mean and column biases in it: (rows, n).

        A row's own bias is no part of its factors; `impute` adds it.
        """
        check_is_fitted(self)
        mean = (self.mean_ + self.col_bias_).astype(self.components_.dtype)
        rows: np.ndarray = np.asarray(Z) @ self.components_ + mean
        return rows

    def impute(self, X: Any) -> Any:
        """X with the missing entries filled, each row folded in as by `transform`: dense, a frame where it was one.

        Args:
            X: in any form that `fit` takes, with the columns of the fit. A frame of user, item and rating gives one
                with a row for each user and a column for each item of the fit.
        """
        check_is_fitted(self)
        data = self._read_rows(X)
        factors, bias = self._fold_in(data)
        filled = self._clipped(
            self.inverse_transform(to_numpy(factors)) + bias[:, None].astype(self.row_bias_.dtype)
        )
        filled[data.rows, data.cols] = data.values
        if _forms.is_wide(X):
            return type(X)(filled, X.index, self._in_order(X).columns)[list(X.columns)]
        if _forms.is_frame(X) and self._ids is not None:
            return type(X)(filled, np.sort(_forms.pairs_of(X)[0].unique()), self._ids.cols)
        return filled

    @property
    def _shape(self) -> tuple[int, int]:
        return self.row_factors_.shape[0], self.n_features_in_

    def _check_shape(self, data: Observations) -> None:
        if data.shape != self._shape:
            raise InputError(
                f"X has shape {data.shape}, but {type(self).__name__} was fitted on {self._shape}"
            )

    def _check_width(self, data: Observations) -> None:
        if data.shape[1] != self.n_features_in_:
            raise InputError(
                f"X has {data.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input."
            )

    def _name(self, index: np.ndarray, axis: int) -> np.ndarray:
        if self._ids is None:
            return index
        names: np.ndarray = (self._ids.rows, self._ids.cols)[axis][index]
        return names

    def _place_of(self, names: Any, axis: int) -> np.ndarray:
        """Indices of rows or columns; −1 for names that are unknown."""
        if self._ids is not None:
            return self._ids.find(axis, np.atleast_1d(names))
        name, size = ("rows", "cols")[axis], self._shape[axis]
        index = whole_numbers(name, names)
        if len(index) and not 0 <= index.min() <= index.max() < size:
            raise InputError(
                f"{name} holds indices from {index.min()} to {index.max()}: they must lie in [0, {size})"
            )
        return index

    def _read_rows(self, X: Any) -> Observations:
        """Observations of rows that may be new, over the columns of the fit."""
        if _forms.is_frame(X) and self._ids is not None:
            users, items = _forms.pairs_of(X)
            ids = Ids(np.sort(users.unique()), self._ids.cols)
            return _forms.read(X[items.isin(self._ids.cols)], ids=ids, grow=False, clicks=self.implicit)[0]
        shape = (int(np.max(X[0])) + 1, self.n_features_in_) if isinstance(X, tuple) and len(X) == 3 else None
        data, _ = _forms.read(self._in_order(X), all_observed=True, shape=shape)
        self._check_width(data)
        return data

    def _in_order(self, X: Any) -> Any:
        """A frame with its columns in the order of the fit, where both have names.

        Raises:
            InputError: other names than those of the fit.
        """
        if not _forms.is_wide(X) or not hasattr(self, "feature_names_in_"):
            return X
        missing, extra = (
            sorted(map(str, set(a) - set(b)))
            for a, b in ((self.feature_names_in_, X.columns), (X.columns, self.feature_names_in_))
        )
        if missing or extra:
            wrong = [f"lacks {', '.join(missing[:5])}"] * bool(missing) + [
                f"has {', '.join(extra[:5])}"
            ] * bool(extra)
            raise InputError(f"X {' and '.join(wrong)}: give the columns of the fit, in any order")
        return X[list(self.feature_names_in_)]

    @property
    def _biased(self) -> bool:
        return not self.implicit if self.fit_bias == "auto" else self.fit_bias

    def _fold_in(self, data: Observations) -> tuple[Tensor, np.ndarray]:
        """Factors and biases of rows, with the columns as they are."""
        return self._solve_side(data, 0, self.components_.T.copy(), self.col_bias_)

    def _solve_side(
        self, data: Observations, axis: int, other: np.ndarray, bias: np.ndarray
    ) -> tuple[Tensor, np.ndarray]:
        """Factors and biases of rows (0) or columns (1), given those of the other side."""
        used = data.confident(self.alpha) if self.implicit else data
        V = torch.as_tensor(other)
        ridge = self._ridge(used.counts(axis), V, self.reg_)
        rest = used.values - self.mean_ - bias[(used.cols, used.rows)[axis]]
        solver, own = RowSolver("cholesky", everywhere=self.implicit), np.zeros(used.shape[axis], bias.dtype)
        if self._biased and self.reg_:
            kappa = math.sqrt(self.reg_ / BIAS_RIDGE[self.reg_scaling])
            design = torch.cat([V, torch.full_like(V[:, :1], kappa)], 1)
            solved = solver(used.compress(rest, axis, None, V), design, ridge)
            return solved[:, :-1].contiguous(), kappa * to_numpy(solved[:, -1])
        if self._biased:
            own = damped_means(used, rest, axis)
            rest = rest - own[(used.rows, used.cols)[axis]]
        return solver(used.compress(rest, axis, None, V), V, ridge), own

    def _ridge(self, counts: np.ndarray, like: Tensor, reg: float) -> Tensor:
        """c_i of each row, from its number of observations."""
        return torch.as_tensor(reg * (counts if self.reg_scaling == "count" else np.ones(len(counts)))).to(
            like
        )

    def _clip_range(self) -> tuple[float, float]:
        if self.clip is None:
            return -np.inf, np.inf
        clip = np.asarray(self.clip, dtype=np.float64)
        low, high = clip if clip.shape == (2,) else (np.nan, np.nan)
        if not low < high:
            raise InputError(f"clip is {self.clip}: give the lowest and the highest prediction")
        return float(low), float(high)

    def _clipped(self, values: np.ndarray) -> np.ndarray:
        return values if self.clip is None else np.clip(values, *self._clip_range())
