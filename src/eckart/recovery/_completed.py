"""What a completed matrix is good for: predictions, fold-in of new rows, filling, recommendations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from eckart.errors import InputError
from eckart.linalg.completion import RowSolver
from eckart.recovery import _forms
from eckart.recovery._base import RecoveryTransformer, to_numpy
from eckart.recovery._biases import BIAS_RIDGE, Biases, damped_means
from eckart.recovery._ratings import Ids, Observations, whole_numbers
from eckart.recovery.ranking import ranking_scores

ROWS = 1024
"""Rows whose scores are in memory at once."""


class CompletedMatrix(RecoveryTransformer):
    """The fitted side of `MatrixCompletion`. A row of zeros stands for whatever has no observation."""

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
        return self.components_.shape[0]

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
        return np.asarray(Z) @ self.components_ + (self.mean_ + self.col_bias_).astype(self.components_.dtype)

    def impute(self, X: Any) -> np.ndarray:
        """X as a dense array with the missing entries filled, each row folded in as by `transform`."""
        check_is_fitted(self)
        data = self._read_rows(X)
        factors, bias = self._fold_in(data)
        filled = self._clipped(
            self.inverse_transform(to_numpy(factors)) + bias[:, None].astype(self.row_bias_.dtype)
        )
        filled[data.rows, data.cols] = data.values
        return filled

    def recommend(self, rows: Any, k: int = 10, exclude: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """The k columns with the highest predictions for each row.

        Args:
            rows: indices or names of rows.
            k: how many.
            exclude: entries not to recommend, such as the ratings of the fit, in any form that `fit` takes.

        Returns:
            Columns (rows, k), indices or names, and their predictions, falling. Where fewer are left: −1 or None, and
            −inf.

        Raises:
            ValueError: an unknown row, or k above the number of columns.
        """
        check_is_fitted(self)
        place = self._place_of(rows, 0)
        if (place < 0).any():
            raise InputError(
                f"rows holds {int((place < 0).sum())} unknown names: fold them in with partial_fit"
            )
        if not 1 <= k <= self.n_features_in_:
            raise InputError(
                f"k is {k}: give a number from 1 to {self.n_features_in_}, the number of columns"
            )
        banned = sp.csr_array(self._shape, dtype=bool) if exclude is None else self._mask(exclude)
        items, scores = [], []
        for rows in np.array_split(place, -(-len(place) // ROWS)):
            found, values = self._best(rows, k, banned)
            items.append(found)
            scores.append(self._clipped(values))
        chosen, values = np.concatenate(items), np.concatenate(scores)
        values[chosen < 0] = -np.inf
        if self._ids is None:
            return chosen, values
        names = self._ids.cols if (chosen >= 0).all() else np.append(self._ids.cols.astype(object), None)
        return names[chosen], values

    def similar_items(self, items: Any, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """The k columns whose factors have the largest cosine with those of each item, itself left out.

        Args:
            items: indices or names of columns.
            k: how many.

        Returns:
            Columns (items, k), indices or names, and their cosines, falling; 0 for columns without observations.

        Raises:
            ValueError: an unknown item, or k not below the number of columns.
        """
        check_is_fitted(self)
        place = self._place_of(items, 1)
        if (place < 0).any():
            raise InputError(f"items holds {int((place < 0).sum())} unknown names: give columns of the fit")
        if not 1 <= k < self.n_features_in_:
            raise InputError(
                f"k is {k}: give a number from 1 to {self.n_features_in_ - 1}, the other columns"
            )
        columns = torch.as_tensor(self.components_.T.copy())
        unit = columns / columns.norm(dim=1, keepdim=True).clamp_min(torch.finfo(columns.dtype).tiny)
        cosine = unit[place] @ unit.mT
        cosine[torch.arange(len(place)), torch.as_tensor(place)] = -torch.inf
        top = cosine.topk(k)
        return self._name(to_numpy(top.indices), 1), to_numpy(top.values)

    def ranking_scores(self, X: Any, k: int = 10) -> dict[str, float]:
        """nDCG, recall and MAP at k of `recommend`, entries of the fit excluded, by the entries of X: see `ranking`.

        Args:
            X: what was held out, in any form that `fit` takes, of rows and columns of the fit.
            k: how many columns are recommended.
        """
        check_is_fitted(self)
        if _forms.is_frame(X) and self._ids is not None:
            users, items = _forms.pairs_of(X)
            X = X[users.isin(self._ids.rows) & items.isin(self._ids.cols)]
        relevant = self._mask(X)
        users = np.flatnonzero(np.diff(relevant.indptr))
        seen = sp.csr_array(
            (np.ones(len(self._data.rows), bool), (self._data.rows, self._data.cols)), self._shape
        )
        chosen = [self._best(rows, k, seen)[0] for rows in np.array_split(users, -(-len(users) // ROWS) or 1)]
        return ranking_scores(np.concatenate(chosen), relevant[users])

    def score(self, X: Any, y: Any = None) -> float:
        """−RMSE on the observed entries of X, a matrix of the shape of the fit or a frame; with ``implicit`` nDCG@10.

        Greater is better.
        """
        check_is_fitted(self)
        if self.implicit:
            return self.ranking_scores(X, min(10, self.n_features_in_))["ndcg"]
        if _forms.is_frame(X):
            data, ids = _forms.read(X)
            predicted = self.predict(ids.rows[data.rows], ids.cols[data.cols])
        else:
            data, _ = _forms.read(X, all_observed=True, shape=self._shape)
            self._check_shape(data)
            predicted = self.predict(self._name(data.rows, 0), self._name(data.cols, 1))
        return -float(np.sqrt(np.average((predicted - data.values) ** 2.0, weights=data.repeats)))

    def _best(self, rows: np.ndarray, k: int, banned: sp.csr_array) -> tuple[np.ndarray, np.ndarray]:
        """The k columns of the highest predictions, and these; −1 and −inf where fewer are left."""
        whole = self.inverse_transform(self.row_factors_[rows]) + self.row_bias_[rows, None]
        there = banned[rows].tocoo()
        whole[there.row, there.col] = -np.inf
        top = torch.as_tensor(whole).topk(k)
        return np.where(top.values.isneginf(), -1, top.indices), to_numpy(top.values)

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

    def _mask(self, X: Any) -> sp.csr_array:
        data, _ = _forms.read(X, all_observed=True, ids=self._ids, grow=False, shape=self._shape, clicks=True)
        self._check_shape(data)
        return sp.csr_array((np.ones(len(data.rows), bool), (data.rows, data.cols)), shape=self._shape)

    def _name(self, index: np.ndarray, axis: int) -> np.ndarray:
        return index if self._ids is None else (self._ids.rows, self._ids.cols)[axis][index]

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
        data, _ = _forms.read(X, all_observed=True, shape=shape)
        self._check_width(data)
        return data

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
        low, high = np.asarray(self.clip, dtype=np.float64)
        if not low < high:
            raise InputError(f"clip is {self.clip}: give the lowest and the highest prediction")
        return float(low), float(high)

    def _clipped(self, values: np.ndarray) -> np.ndarray:
        return values if self.clip is None else np.clip(values, *self._clip_range())
