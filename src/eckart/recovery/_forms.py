"""Observed entries of a matrix, from any form that people keep them in; nothing is densified.

    scipy or torch sparse    stored entries are the observations, explicit zeros among them
    dense, masked            NaN or masked is missing
    (rows, cols, values)     triplets, with the shape of the matrix
    a pandas frame           columns user, item and rating: ids of any kind; other frames are matrices, NaN is missing

An entry given more than once counts as that many observations of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from eckart.errors import InputError
from eckart.recovery._base import check_array
from eckart.recovery._ratings import Ids, Observations, alike, merge, whole_numbers

NAMES = (("user",), ("item", "movie", "product"), ("rating", "value", "score"))


def is_frame(X: Any) -> bool:
    """A pandas frame of (user, item, rating) or (user, item)."""
    return hasattr(X, "columns") and _named_columns(X) is not None


def is_wide(X: Any) -> bool:
    """A pandas frame that is a matrix, one column for each of its columns."""
    return hasattr(X, "columns") and hasattr(X, "dtypes") and not is_frame(X)


def pairs_of(X: Any) -> tuple[Any, Any]:
    """The user and the item column of a frame."""
    names = _named_columns(X)
    assert names is not None, "only a frame of user and item has them"
    return X[names[0]], X[names[1]]


def read(
    X: Any,
    *,
    shape: tuple[int, int] | None = None,
    sample_weight: Any = None,
    all_observed: bool = False,
    ids: Ids | None = None,
    grow: bool = True,
    clicks: bool = False,
) -> tuple[Observations, Ids | None]:
    """The observations of X, and the names of its rows and columns if it has any.

    Args:
        X: in any of the forms above.
        shape: of the matrix, for triplets.
        sample_weight: one for each row of the matrix, or in the shape of X; one for each observation of triplets.
        all_observed: a dense X without NaN is meant.
        clicks: a frame without ratings is meant, each row a count of one, and a dense X without NaN.
        ids: names that are already known; others follow them if ``grow``, else they are refused.

    Raises:
        InputError: nothing observed, NaN or infinity among the values, indices outside the shape, negative weights.
    """
    weights = None
    if is_frame(X):
        rows, cols, values, shape, ids = _from_frame(X, ids, grow, clicks)
        weights = None if sample_weight is None else _vector(sample_weight, len(values))
    elif isinstance(X, tuple) and len(X) == 3:
        rows, cols = (whole_numbers(name, index) for name, index in zip(("rows", "cols"), X[:2], strict=True))
        values = np.array(X[2], dtype=_float(np.asarray(X[2]).dtype)).ravel()  # copied: a fit keeps them
        if not len(rows) == len(cols) == len(values):
            raise InputError(
                f"X holds {len(rows)} rows, {len(cols)} columns and {len(values)} values: give as many"
            )
        shape = shape or (int(rows.max(initial=-1)) + 1, int(cols.max(initial=-1)) + 1)
        weights = None if sample_weight is None else _vector(sample_weight, len(values))
    else:
        rows, cols, values, shape = _from_matrix(X, all_observed or clicks)
        weights = _matrix_weights(sample_weight, rows, cols, shape)
    if 0 in shape:
        axis = "sample(s)" if shape[0] == 0 else "feature(s)"
        raise InputError(
            f"Found array with 0 {axis} (shape={tuple(shape)}) while a minimum of 1 is required."
        )
    for name, index, size in zip(("row", "column"), (rows, cols), shape, strict=True):
        if len(index) and not 0 <= index.min() <= index.max() < size:
            raise InputError(
                f"X has {name} indices from {index.min()} to {index.max()}: they must lie in [0, {size})"
            )
    if not np.isfinite(values).all():
        raise InputError("Input X contains NaN or infinity among the observed values.")
    if weights is not None:
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise InputError("sample_weight holds negative or infinite numbers, or NaN.")
        seen = weights > 0
        rows, cols, values, weights = rows[seen], cols[seen], values[seen], weights[seen]
    if not len(values):
        raise InputError("X has no observed entry: every entry is missing or has weight zero.")
    return merge(rows, cols, values, weights, None, (int(shape[0]), int(shape[1]))), ids


def _from_frame(X: Any, ids: Ids | None, grow: bool, clicks: bool) -> Any:
    names = _named_columns(X)
    assert names is not None, "`read` sends frames of user and item only"
    if names[2] is None and not clicks:
        raise InputError(
            f"X has columns {', '.join(map(str, X.columns))}: one named rating, value or score is missing"
        )
    found, index = [], []
    for axis in (0, 1):
        column = X[names[axis]]
        if column.isna().any():
            raise InputError(f"X[{names[axis]!r}] has missing ids")
        known = np.array([], dtype=object) if ids is None else (ids.rows, ids.cols)[axis]
        known, names_of = alike(known, column)
        column = type(column)(names_of)
        new = np.sort(column[~column.isin(known)].unique())
        if len(new) and not grow:
            raise InputError(f"X[{names[axis]!r}] has {len(new)} unknown ids, such as {new[0]!r}")
        found.append(np.concatenate([known, new]) if len(known) else np.asarray(new))
    ids = Ids(*found)
    index = [ids.find(axis, X[names[axis]]).astype(np.int64) for axis in (0, 1)]
    values = np.ones(len(X)) if names[2] is None else X[names[2]].to_numpy()
    try:
        values = values.astype(_float(values.dtype))
    except (TypeError, ValueError) as error:
        raise InputError(f"X[{names[2]!r}] must hold numbers: {error}") from None
    return *index, values, (len(ids.rows), len(ids.cols)), ids


def _named_columns(X: Any) -> tuple[Any, Any, Any] | None:
    plain = {str(c).lower().replace("_", "").removesuffix("id"): c for c in X.columns}
    user, item, rating = (next((plain[n] for n in group if n in plain), None) for group in NAMES)
    return None if user is None or item is None else (user, item, rating)


def _from_matrix(X: Any, all_observed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu()
        if not X.is_complex() and X.dtype not in (torch.float32, torch.float64):
            X = X.double()  # of which NumPy may know nothing, such as bfloat16
        if X.layout == torch.strided:
            X = X.numpy()
        else:
            X = X.to_sparse_coo()  # as it was given: coalescing would add repeated entries up
            X = sp.coo_array((X._values().numpy(), tuple(X._indices().numpy())), shape=tuple(X.shape))
    if sp.issparse(X):
        coo = X.tocoo()
        if coo.data.dtype.kind == "c":
            raise InputError("Complex data not supported")
        return coo.row.astype(np.int64), coo.col.astype(np.int64), coo.data.astype(_float(coo.dtype)), X.shape
    if isinstance(X, np.ma.MaskedArray):
        X, all_observed = np.where(np.ma.getmaskarray(X), np.nan, X.data.astype(_float(X.dtype))), True
    hint = ""
    if is_wide(X):
        hint = "; ratings need columns named user, item and rating"
        words = [str(name) for name, kind in X.dtypes.items() if kind.kind not in "biuf"]
        if words:
            raise InputError(
                f"X has columns {', '.join(map(str, X.columns))}, and {', '.join(words)} do not hold numbers: "
                "name them user, item and rating, or give a frame of numbers"
            )
    X = check_array(X, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan", ensure_min_samples=0)
    there = ~np.isnan(X)
    if there.all() and not all_observed:
        raise InputError(
            f"X is dense and nothing in it is missing (NaN): pass all_observed=True if that is meant{hint}"
        )
    rows, cols = there.nonzero()
    return rows, cols, X[there], X.shape


def _matrix_weights(
    weight: Any, rows: np.ndarray, cols: np.ndarray, shape: tuple[int, int]
) -> np.ndarray | None:
    if weight is None:
        return None
    weight = weight if hasattr(weight, "shape") else np.asarray(weight)
    if np.ndim(weight) == 1 and not sp.issparse(weight):
        of_row: np.ndarray = _vector(weight, shape[0])[rows]
        return of_row
    if weight.shape != tuple(shape):
        raise InputError(
            f"sample_weight has shape {weight.shape}: give one for each of {shape[0]} rows, or {shape}"
        )
    if sp.issparse(weight):
        return np.asarray(weight.tocsr()[rows, cols], dtype=np.float64).ravel()
    each: np.ndarray = np.asarray(weight, dtype=np.float64)[rows, cols]
    return each


def _vector(weight: Any, size: int) -> np.ndarray:
    each: np.ndarray = np.asarray(weight, dtype=np.float64)
    if each.shape != (size,):
        raise InputError(f"sample_weight has shape {each.shape}: give {size} of them")
    return each


def _float(dtype: Any) -> Any:
    return np.float32 if dtype == np.float32 else np.float64
