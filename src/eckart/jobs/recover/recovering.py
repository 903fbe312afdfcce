"""Recovery jobs on files: a table of ratings completed, and the top eigenvector of rows that stream by."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np

from eckart.errors import InputError
from eckart.escapes import frame
from eckart.files import atomic_directory, atomic_write, check_output, check_output_file, locked
from eckart.jobs.recover.ratings import read_ratings
from eckart.recovery._rows import read_header, read_rows

if TYPE_CHECKING:
    import pandas as pd

    from eckart.recovery import MatrixCompletion
    from eckart.recovery._base import RecoveryEstimator
    from eckart.recovery.streaming import StreamingPCA

E = TypeVar("E", bound="RecoveryEstimator")
PLACES = 10
"""Recommendations to a user that the ranking is judged by."""
NO_FACTORS = 1e9
"""A ridge, in largest singular values, that leaves the biases alone."""


@dataclass(frozen=True)
class Completion:
    """What `complete` found; errors and scores are of a model that has not seen what was held out.

    Attributes:
        ratings, users, items: of the file.
        rank, iterations, converged: of the model that is written.
        reg: the ridge that it was fitted with.
        train_rmse: on what it was fitted to.
        test_ratings: how many were held out.
        test_rmse, bias_rmse: on them, and that of the biases alone; None of implicit feedback, which has no ratings.
        ranking: nDCG, recall and MAP at k = 10 of what is recommended to the users of what was held out.
    """

    ratings: int
    users: int
    items: int
    rank: int
    iterations: int
    converged: bool
    reg: float
    train_rmse: float
    test_ratings: int
    test_rmse: float | None
    bias_rmse: float | None
    ranking: dict[str, float | None] | None


def complete(
    ratings: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str],
    sep: str | None = None,
    columns: str | None = None,
    encoding: str = "utf-8",
    rank: int = 20,
    test_share: float = 0.1,
    implicit: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    on_iteration: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Completion:
    """Fit `MatrixCompletion` to a file of ratings and write the model, its factors as tables, and how good it is.

    The directory holds ``model/`` (`MatrixCompletion.load`), ``users.csv`` and ``items.csv`` (name, bias, factors) and
    ``metrics.json``. A share of the ratings is held out to measure the error and the ranking; the model that is written
    has seen all.

    Args:
        ratings: a CSV or Parquet file with columns user, item and rating (userId, movieId, score … are understood);
            with ``implicit`` user and item are enough. Names of users and items are text, whatever they look like:
            001 is another than 1.
        output: the directory to make.
        sep: what stands between the fields of a text file, such as ``";"``, ``"::"`` or ``"tab"``; a comma when None,
            or a tab in a file that ends in ``.tsv``.
        columns: names of the columns of a text file that has no header, with commas.
        encoding: of a text file.
        rank: factors of each user and item.
        test_share: share of the ratings held out for the error, in [0, 1).
        implicit: the ratings are counts of what was seen, clicked or bought; a row without one counts once.
        seed: of the hold-out and of the start.
        overwrite: replace what is in the directory.
        on_iteration: called with (done, total).
        options: further ones of `MatrixCompletion`.

    Raises:
        InputError: a file that cannot be read or has no such columns, an option that the estimator does not take, or
            fewer users or items than the rank, in the file or in what the hold-out leaves of it.
    """
    from eckart.recovery import MatrixCompletion

    check_output(output, overwrite=overwrite, inputs={"RATINGS": ratings})
    if not 0 <= test_share < 1:
        raise InputError(f"--test-share is {test_share}: give a share in [0, 1)")
    table = read_ratings(Path(ratings), sep, columns, encoding, implicit=implicit)
    model = _make(MatrixCompletion, options, n_components=rank, implicit=implicit, random_state=seed)
    held = _held_pairs(table, test_share, seed)
    _check_sizes(table, table[~held], rank, test_share)
    total = model.max_iter * (2 if held.any() else 1)
    done = 0

    def step(*_: Any) -> None:
        nonlocal done
        done += 1
        if on_iteration is not None:
            on_iteration(done, total)

    model.set_params(callback=step)
    report = _fitted(model, table, held)
    factors = _factors(model)
    with locked(output), atomic_directory(output, overwrite=overwrite) as folder:
        model.save(folder / "model")
        for name, side in zip(("users.csv", "items.csv"), factors, strict=True):
            frame(_factor_table(*side)).to_csv(folder / name, index=False)
        (folder / "metrics.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


def _fitted(model: MatrixCompletion, table: pd.DataFrame, held: np.ndarray) -> Completion:
    """Measure the model on what is held out, then fit it to the whole table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        test_rmse, bias_rmse, ranking = _held_out(model, table, held) if held.any() else (None, None, None)
        model.fit(table)
    (users, *_), (items, *_) = _factors(model)
    return Completion(
        ratings=len(table),
        users=len(users),
        items=len(items),
        rank=model.n_components,
        iterations=model.n_iter_,
        converged=bool(model.converged_),
        reg=model.reg_,
        train_rmse=model.train_rmse_,
        test_ratings=int(held.sum()),
        test_rmse=test_rmse,
        bias_rmse=bias_rmse,
        ranking=ranking,
    )


def _factors(model: MatrixCompletion) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Names, biases and factors of the users and of the items."""
    users, items = model.row_ids_, model.col_ids_
    assert users is not None and items is not None, "a table names its users and items"
    return (users, model.row_bias_, model.row_factors_), (items, model.col_bias_, model.components_.T)


def _held_out(
    model: MatrixCompletion, table: pd.DataFrame, held: np.ndarray
) -> tuple[float | None, float | None, dict[str, float | None]]:
    """RMSE on the ratings held out of a model fitted to the others, that of biases alone, and its ranking of them."""
    from eckart.recovery import MatrixCompletion

    model.fit(table[~held])
    scores = model.ranking_scores(table[held], k=min(PLACES, model.n_features_in_))
    ranking = {name: None if np.isnan(value) else value for name, value in scores.items()}
    if model.implicit:
        return None, None, ranking
    reg = NO_FACTORS * (float(model.singular_values_[0]) or 1.0)
    biases = MatrixCompletion(1, reg=reg, clip=model.clip, random_state=0).fit(table[~held])
    return -model.score(table[held]), -biases.score(table[held]), ranking


def _check_sizes(table: pd.DataFrame, kept: pd.DataFrame, rank: int, test_share: float) -> None:
    """Refuse a rank that the table, or the part of it that is trained on, is too small for."""
    from eckart.recovery._forms import pairs_of

    for part, cause, remedy in (
        (table, "the file holds", "give more of them or lower --rank"),
        (kept, f"--test-share {test_share} leaves", "lower --test-share or --rank"),
    ):
        users, items = (ids.nunique() for ids in pairs_of(part))
        if min(users, items) < rank:
            raise InputError(
                f"{cause} {len(part)} ratings of {users} users and {items} items, too few for rank {rank}: {remedy}"
            )


def _make(kind: type[E], options: dict[str, Any], **given: Any) -> E:
    """An estimator with these hyper-parameters, refused here rather than when it is fitted."""
    try:
        made = kind(**given, **options)
        made._validate_params()
    except ValueError as error:
        raise InputError(str(error)) from None
    except TypeError:
        known = ", ".join(sorted(set(kind().get_params()) - set(given)))
        raise InputError(f"options {', '.join(options)}: {kind.__name__} takes {known}") from None
    return made


def _held_pairs(table: pd.DataFrame, test_share: float, seed: int) -> np.ndarray:
    """Which ratings are held out: all of a (user, item) pair or none, so that no answer is among what is learned."""
    user, item, _ = table.columns
    pair = table.groupby([user, item], sort=False).ngroup().to_numpy()
    drawn = np.random.default_rng(seed).random(int(pair.max(initial=-1)) + 1) < test_share
    held: np.ndarray = drawn[pair]
    return held


def _factor_table(names: np.ndarray, bias: np.ndarray, factors: np.ndarray) -> pd.DataFrame:
    import pandas as pd

    columns = {f"factor_{j}": factors[:, j] for j in range(factors.shape[1])}
    return pd.DataFrame({"name": names, "bias": bias, **columns})


def eigenvector(
    source: str | os.PathLike[str] | BinaryIO,
    *,
    components: int = 1,
    center: bool = False,
    width: int | None = None,
    dtype: str = "float32",
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    on_rows: Callable[[int, int | None], None] | None = None,
    **options: Any,
) -> StreamingPCA:
    """The top right singular vectors of rows that are read once, in bounded memory.

    Args:
        source: a ``.npy`` file of shape (rows, d), or a binary stream that carries the same: the header of a ``.npy``
            and its numbers, or with ``width`` bare numbers of type ``dtype``.
        components: how many vectors.
        center: subtract the running mean.
        width: d, for bare numbers.
        dtype: of bare numbers.
        seed: of the start.
        output: a ``.npy`` file to write the vectors (components, d) to.
        on_rows: called with the rows so far and, if it is known, their number.
        options: further ones of `StreamingPCA`.

    Raises:
        InputError: no such file, not two dimensions, no rows, NaN or infinity, a stream that ends in the middle of a
            row or before its last row, an output that cannot be written.
    """
    from eckart.recovery import StreamingPCA

    if output is not None:
        check_output_file(output, inputs={"ROWS": source if isinstance(source, str | os.PathLike) else None})
    try:
        opened = open(source, "rb") if isinstance(source, str | os.PathLike) else nullcontext(source)  # noqa: SIM115
    except OSError as error:
        raise InputError(f"rows {source} cannot be read: {error.strerror}") from None
    with opened as stream:
        n, width, kind, ahead = read_header(stream, width, dtype)
        pca = _make(
            StreamingPCA, options, n_components=components, n_samples=n, center=center, random_state=seed
        )
        for rows in read_rows(stream, n, width, kind, ahead):
            pca.partial_fit(rows)
            if on_rows is not None:
                on_rows(pca.n_samples_seen_, n)
    if not hasattr(pca, "n_features_in_"):
        raise InputError("rows: there are none")
    pca.finalize()
    if output is not None:
        content = io.BytesIO()  # NumPy's own writing to a file does not say that the disk is full
        np.save(content, pca.components_)
        with atomic_write(output) as path:
            path.write_bytes(content.getvalue())
    return pca
