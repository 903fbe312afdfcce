"""What stands at the top of a completed matrix: recommendations, similar columns, and how good the order is."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.utils.validation import check_is_fitted

from eckart.errors import InputError
from eckart.recovery import _forms
from eckart.recovery._base import to_numpy
from eckart.recovery._completed import CompletedMatrix
from eckart.recovery.ranking import ranking_scores

ROWS = 1024
"""Rows whose scores are in memory at once."""


class RankedMatrix(CompletedMatrix):
    """The side of `MatrixCompletion` that ranks columns, and says how good predictions and order are."""

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
        names = self._ids.cols if (chosen >= 0).all() else np.array([*self._ids.cols, None], dtype=object)
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
            if X.empty:
                return ranking_scores(np.zeros((0, k), int), np.zeros((0, self.n_features_in_)))
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
            assert ids is not None, "a frame of ratings names its rows and columns"
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

    def _mask(self, X: Any) -> sp.csr_array:
        data, _ = _forms.read(X, all_observed=True, ids=self._ids, grow=False, shape=self._shape, clicks=True)
        self._check_shape(data)
        return sp.csr_array((np.ones(len(data.rows), bool), (data.rows, data.cols)), shape=self._shape)
