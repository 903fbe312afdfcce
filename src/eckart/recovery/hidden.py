"""HiddenEntries: a scorer that hides entries, so that `GridSearchCV` and its kin can tune a completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eckart.errors import InputError
from eckart.recovery import _forms


@dataclass(frozen=True)
class HiddenEntries:
    """Minus the error on entries of new rows that were hidden from the estimator: greater is better.

    A share of the observed entries of X is hidden, the rows are folded in from the others by ``impute``, or by
    ``transform`` and ``inverse_transform``, and the hidden are compared. Pass it as ``scoring``:

        GridSearchCV(MatrixCompletion(), {"n_components": [5, 10]}, scoring=HiddenEntries()).fit(X)

    A frame of user, item and rating needs none: its rows are ratings, and ``score`` is −RMSE on those left out.

    Args:
        share: of the observed entries, in (0, 1).
        metric: "rmse", or "mae", which outliers move less.
        random_state: which entries are hidden.
    """

    share: float = 0.2
    metric: Literal["rmse", "mae"] = "rmse"
    random_state: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"share is {self.share}: give a share between 0 and 1")
        if self.metric not in ("rmse", "mae"):
            raise InputError(f"metric is {self.metric!r}: give 'rmse' or 'mae'")

    def __call__(self, estimator: Any, X: Any, y: Any = None) -> float:
        """The score of a fitted estimator on rows that it may not have seen.

        Raises:
            InputError: X has fewer than two observed entries, or is a frame of ratings.
        """
        if hasattr(X, "columns") and _forms.is_frame(X):
            raise InputError(
                "X is a frame of ratings: leave scoring out, score() is −RMSE on the ratings left out"
            )
        data, _ = _forms.read(X, all_observed=True)
        count = len(data.values)
        hidden = np.random.default_rng(self.random_state).permutation(count) < round(self.share * count)
        if not hidden.any() or hidden.all():
            raise InputError(f"X has {count} observed entries: too few to hide a share of {self.share}")
        seen = np.full(data.shape, np.nan, data.values.dtype)
        seen[data.rows[~hidden], data.cols[~hidden]] = data.values[~hidden]
        shown = type(X)(seen, X.index, X.columns) if _forms.is_wide(X) else seen
        if hasattr(estimator, "impute"):
            filled = np.asarray(estimator.impute(shown))
        else:
            filled = np.asarray(estimator.inverse_transform(np.asarray(estimator.transform(shown))))
        error = np.abs(filled[data.rows[hidden], data.cols[hidden]] - data.values[hidden])
        return -float(error.mean() if self.metric == "mae" else np.sqrt(np.square(error).mean()))
