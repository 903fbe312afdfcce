"""Completion: exactness, the inexact solvers, every form of data, ids, fold-in, updates, and what is refused."""

from __future__ import annotations

import tracemalloc

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from problems import low_rank, masked
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eckart.linalg.completion import Compressed, RowSolver, clip_incoherent
from eckart.linalg.regression import (
    conjugate_gradient,
    count_sketch,
    normal_equations,
    preconditioned,
    preconditioned_spectrum,
    sketch_start,
)
from eckart.recovery import MatrixCompletion, _fit
from eckart.recovery._alternation import halves_of
from eckart.recovery._forms import read
from eckart.recovery._ratings import Observations

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
M, N, K = 60, 80, 3
TRUTH = low_rank(M, N, K)
DATA = masked(TRUTH, 0.5)
EXACT = {"n_components": K, "reg": 0.0, "fit_bias": False, "max_iter": 25, "tol": 0.0, "random_state": 0}


def ratings(users: int = 40, items: int = 30, share: float = 0.5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scores = (
        3 + rng.normal(0, 0.5, (users, 1)) + rng.normal(0, 0.5, items) + 4 * low_rank(users, items, 2, seed)
    )
    return masked(np.clip(scores + rng.normal(0, 0.2, scores.shape), 1, 5), share, seed)


def frame(matrix: np.ndarray) -> pd.DataFrame:
    rows, cols = np.nonzero(~np.isnan(matrix))
    names = pd.DataFrame(
        {"user_id": [f"u{r:03}" for r in rows], "movieId": 10 * cols, "rating": matrix[rows, cols]}
    )
    return names.sample(frac=1, random_state=0)


def relative(model: MatrixCompletion) -> float:
    return float(np.linalg.norm(model.row_factors_ @ model.components_ - TRUTH) / np.linalg.norm(TRUTH))


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "cholesky"},
        {"solver": "cg", "cg_steps": 2},
        {"solver": "sketch", "cg_steps": 2, "sketch_factor": 3},
        {"init": "random", "max_iter": 60},
    ],
)
def test_recovers_exactly_without_noise(options) -> None:
    model = MatrixCompletion(**EXACT | options).fit(DATA)
    assert relative(model) < 1e-7
    np.testing.assert_allclose(model.singular_values_, np.linspace(2, 1, K), rtol=1e-6)
    assert model.inner_residual_ < 1e-6


def test_a_warm_start_carried_through_qr_is_what_makes_few_steps_enough() -> None:
    warm = MatrixCompletion(**EXACT | {"solver": "cg", "cg_steps": 1, "max_iter": 60}).fit(DATA)
    data, _ = read(DATA)
    like = torch.zeros(0, dtype=torch.float64)
    by_row, by_col = (data.compress(data.values, axis, None, like) for axis in (0, 1))
    U, solver = torch.linalg.svd(torch.as_tensor(np.nan_to_num(DATA)))[0][:, :K], RowSolver("cg", 1)
    for _ in range(60):
        V = torch.linalg.qr(solver(by_col, U, torch.zeros(N))).Q
        left = solver(by_row, V, torch.zeros(M))
        U = torch.linalg.qr(left).Q
    cold = np.linalg.norm((left @ V.mT).numpy() - TRUTH) / np.linalg.norm(TRUTH)
    assert relative(warm) < 1e-6 and cold > 1e-2


def problem(q: int = 400, k: int = 6, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(batch, q, k, dtype=torch.float64, generator=generator) * torch.logspace(0, 1, k)
    return (
        A,
        torch.randn(batch, q, dtype=torch.float64, generator=generator),
        torch.zeros(batch, dtype=torch.float64),
    )


@pytest.mark.parametrize("factor", [4, 8, 32])
def test_sketched_iterations_fall_by_their_factor(factor: int) -> None:
    A, b, ridge = problem()
    k, s = 6, 6 * factor
    S = torch.randn(s, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) / s**0.5
    x0, R = sketch_start(S @ A, b @ S.mT, ridge)
    exact = torch.linalg.lstsq(A, b.unsqueeze(-1)).solution.squeeze(-1)
    rho = (k / s) ** 0.5
    spectrum = preconditioned_spectrum(A, R)
    assert spectrum.min() > 0.7 / (1 + rho) and spectrum.max() < 1.4 / (1 - rho)

    def factors(iteration):
        error = (
            (R @ (preconditioned(A, b, ridge, x0, R, s, 30, iteration) - exact).unsqueeze(-1))
            .flatten(1)
            .norm(dim=1)
        )
        return float((error[8] / error[2]) ** (1 / 6))

    assert factors("pcg") < rho
    assert factors("heavy_ball") < 1.5 * rho
    assert factors("damped") < 1.1 * 2 * rho / (1 + rho**2)
    assert (factors("unit") < 1) == (factor == 32)


def test_count_sketch_keeps_the_geometry() -> None:
    A, b, ridge = problem(2000)
    sketched = count_sketch(torch.cat([A, b.unsqueeze(-1)], -1), 60, torch.Generator().manual_seed(0))
    x0, R = sketch_start(sketched[..., :-1], sketched[..., -1], ridge)
    exact = torch.linalg.lstsq(A, b.unsqueeze(-1)).solution.squeeze(-1)
    found = preconditioned(A, b, ridge, x0, R, 60, 12)[-1]
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("solve", ["cholesky", "cg", "pcg"])
def test_ridge_solutions_satisfy_their_normal_equations(solve: str) -> None:
    A, b, _ = problem(50)
    ridge = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    if solve == "cholesky":
        x = normal_equations(A, b, ridge)
    elif solve == "cg":
        x = conjugate_gradient(A, b, ridge, torch.zeros(3, 6, dtype=torch.float64), 60)[-1]
    else:
        x0, R = sketch_start(A[:, :25], b[:, :25], ridge)
        x = preconditioned(A, b, ridge, x0, R, 25, 40)[-1]
    slope = (A.mT @ (b - (A @ x.unsqueeze(-1)).squeeze(-1)).unsqueeze(-1)).squeeze(-1) - ridge.unsqueeze(
        -1
    ) * x
    assert slope.abs().max() < 1e-8


def test_singular_regressions_get_the_shortest_solution() -> None:
    A, b, ridge = problem(4)  # fewer rows than unknowns
    x = normal_equations(A, b, ridge)
    expected = (torch.linalg.pinv(A) @ b.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("kind", ["cholesky", "cg", "sketch"])
def test_batches_of_padded_rows_equal_one_row_at_a_time(kind: str) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 120, 50)
    pointer = torch.as_tensor(np.concatenate([[0], counts.cumsum()]))
    size = int(pointer[-1])
    data = Compressed(
        pointer,
        torch.as_tensor(np.concatenate([rng.permutation(200)[:c] for c in counts])),
        torch.as_tensor(rng.normal(size=size)),
        torch.as_tensor(rng.random(size)),
    )
    V, ridge = torch.as_tensor(rng.normal(size=(200, 4))), torch.full((50,), 0.3, dtype=torch.float64)
    together = RowSolver(kind, steps=12)(data, V, ridge)
    alone = torch.cat([RowSolver("cholesky")(data.part(i, i + 1), V, ridge[i : i + 1]) for i in range(50)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-8)


def forms(dense: np.ndarray) -> dict:
    rows, cols = np.nonzero(~np.isnan(dense))
    values = dense[rows, cols]
    coo = sp.coo_array((values, (rows, cols)), shape=dense.shape)
    index = torch.as_tensor(np.stack([rows, cols]))
    return {
        "nan": dense,
        "csr": coo.tocsr(),
        "csc": coo.tocsc(),
        "coo": coo,
        "triplets": (rows, cols, values),
        "masked": np.ma.masked_invalid(dense),
        "torch dense": torch.as_tensor(dense),
        "torch coo": torch.sparse_coo_tensor(
            index, torch.as_tensor(values), dense.shape, check_invariants=False
        ),
        "wide frame": pd.DataFrame(dense),
    }


@pytest.mark.parametrize("form", forms(DATA))
def test_every_form_gives_the_same(form: str) -> None:
    expected = MatrixCompletion(4, max_iter=4, random_state=0).fit(DATA)
    found = MatrixCompletion(4, max_iter=4, random_state=0).fit(forms(DATA)[form])
    np.testing.assert_allclose(found.impute(DATA), expected.impute(DATA), atol=1e-9)


def with_indices(form: str, index: type) -> sp.sparray | torch.Tensor | tuple:
    """The data in a sparse form whose indices have this type."""
    sparse = forms(DATA)[form.removeprefix("torch ")]
    if form == "triplets":
        return sparse[0].astype(index), sparse[1].astype(index), sparse[2]
    if form.startswith("torch"):
        parts = (sparse.indptr.astype(index), sparse.indices.astype(index), sparse.data)
        return torch.sparse_csr_tensor(*map(torch.as_tensor, parts), sparse.shape, check_invariants=False)
    if form == "coo":
        sparse.coords = tuple(axis.astype(index) for axis in sparse.coords)
    else:
        sparse.indices, sparse.indptr = sparse.indices.astype(index), sparse.indptr.astype(index)
    return sparse


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("form", ["csr", "csc", "coo", "triplets", "torch csr"])
def test_indices_of_32_and_64_bits_give_the_same(form: str, index: type) -> None:
    expected = MatrixCompletion(4, max_iter=4, random_state=0).fit(DATA)
    found = MatrixCompletion(4, max_iter=4, random_state=0).fit(with_indices(form, index))
    np.testing.assert_array_equal(found.components_, expected.components_)
    np.testing.assert_array_equal(found.transform(with_indices(form, index)), expected.transform(DATA))


def test_a_matrix_of_more_entries_than_32_bits_count() -> None:
    rng, size = np.random.default_rng(0), 70_000
    rows, cols = np.sort(rng.permutation(size)[:500]), rng.permutation(size)[:500]
    X = sp.coo_array(
        (np.arange(1.0, 501), (rows.astype(np.int32), cols.astype(np.int32))), shape=(size, size)
    )
    assert X.coords[0].dtype == np.int32
    data, _ = read(X)
    np.testing.assert_array_equal(data.rows, rows)
    np.testing.assert_array_equal(data.cols, cols)
    np.testing.assert_array_equal(data.values, np.arange(1.0, 501))


def test_explicit_zeros_are_observations() -> None:
    dense = DATA.copy()
    dense[0, :40] = 0.0
    sparse = forms(dense)["csr"]
    assert (sparse.data == 0).any()
    a, b = (MatrixCompletion(2, max_iter=3, random_state=0).fit(X) for X in (dense, sparse))
    np.testing.assert_allclose(a.components_, b.components_, atol=1e-9)


def test_a_frame_of_names_and_unknown_names() -> None:
    matrix, options = ratings(), {"n_components": 2, "reg": 1.0, "random_state": 0}
    named = MatrixCompletion(**options).fit(frame(matrix))
    plain = MatrixCompletion(**options).fit(matrix)
    assert named.row_ids_[0] == "u000" and named.col_ids_[1] == 10
    pairs = pd.DataFrame({"user": ["u003", "u000", "nobody", "u001", "nobody"], "item": [0, 20, 10, 7, 7]})
    found = named.predict(pairs)
    np.testing.assert_allclose(found[:2], plain.predict([3, 0], [0, 2]), atol=1e-9)
    np.testing.assert_allclose(found[2], plain.mean_ + plain.col_bias_[1])
    np.testing.assert_allclose(found[3], plain.mean_ + plain.row_bias_[1])
    np.testing.assert_allclose(found[4], plain.mean_)
    np.testing.assert_allclose(named.predict(pairs["user"], pairs["item"]), found)
    assert named.score(frame(matrix)) == pytest.approx(plain.score(matrix))
    folded = named.transform(pd.DataFrame({"user": ["new"], "item": [10], "rating": [4.0]}))
    one = np.full((1, 30), np.nan)
    one[0, 1] = 4.0
    np.testing.assert_allclose(folded, plain.transform(one), atol=1e-9)


def test_entries_given_twice_count_twice() -> None:
    rows, cols = np.nonzero(~np.isnan(DATA))
    values = DATA[rows, cols]
    twice = tuple(np.concatenate([a, a[:50]]) for a in (rows, cols, values + 0.0))
    twice[2][-50:] += 1.0
    weights = np.ones(len(rows))
    weights[:50] = 2
    mean = values.copy()
    mean[:50] += 0.5
    options = {"n_components": 2, "reg": 0.5, "max_iter": 4, "init": np.eye(M, 2)}
    with pytest.warns(UserWarning, match="50 entries are given more than once"):
        a = MatrixCompletion(**options).fit(twice, shape=(M, N))
    b = MatrixCompletion(**options).fit((rows, cols, mean), shape=(M, N), sample_weight=weights)
    np.testing.assert_allclose(a.components_, b.components_, atol=1e-9)


def test_weights_of_zero_are_missing_entries_and_weights_of_rows_spread() -> None:
    used = np.random.default_rng(0).random(DATA.shape) < 0.8
    options = {"n_components": 2, "reg": 1.0, "max_iter": 4, "random_state": 0}
    a = MatrixCompletion(**options).fit(DATA, sample_weight=used.astype(float))
    b = MatrixCompletion(**options).fit(np.where(used, DATA, np.nan))
    np.testing.assert_allclose(a.components_, b.components_, atol=1e-9)
    per_row = np.linspace(0.5, 2, M)
    c = MatrixCompletion(**options).fit(DATA, sample_weight=per_row)
    d = MatrixCompletion(**options).fit(DATA, sample_weight=np.repeat(per_row[:, None], N, 1))
    np.testing.assert_allclose(c.components_, d.components_, atol=1e-9)


def test_ridge_by_count_is_plain_where_all_counts_are_equal() -> None:
    dense = np.where(np.indices((12, 12)).sum(0) % 3 == 0, np.nan, low_rank(12, 12, 2))
    a = MatrixCompletion(2, reg=0.1, reg_scaling="count", fit_bias=False, random_state=0).fit(dense)
    b = MatrixCompletion(2, reg=0.8, fit_bias=False, random_state=0).fit(dense)
    np.testing.assert_allclose(a.components_, b.components_, atol=1e-9)


def test_empty_rows_and_columns_are_predicted_by_their_biases() -> None:
    matrix = ratings()
    matrix[5], matrix[:, 7] = np.nan, np.nan
    model = MatrixCompletion(2, reg=1.0, random_state=0).fit(matrix)
    assert (model.row_factors_[5] == 0).all() and (model.components_[:, 7] == 0).all()
    np.testing.assert_allclose(model.predict([5], [7]), model.mean_)
    np.testing.assert_allclose(model.predict([5], [3]), model.mean_ + model.col_bias_[3])
    no_ridge = MatrixCompletion(2, reg=0.0, random_state=0).fit(matrix)
    assert np.isfinite(no_ridge.impute(matrix)).all()


def test_fold_in_equals_the_factors_of_the_fit() -> None:
    matrix = ratings()
    model = MatrixCompletion(2, reg=1.0, random_state=0).fit(matrix)
    np.testing.assert_allclose(model.transform(matrix), model.row_factors_, atol=1e-9)
    filled = model.impute(matrix)
    there = ~np.isnan(matrix)
    np.testing.assert_array_equal(filled[there], matrix[there])
    rows, cols = np.nonzero(~there)
    np.testing.assert_allclose(filled[rows, cols], model.predict(rows, cols), atol=1e-9)
    np.testing.assert_allclose(
        model.inverse_transform(model.row_factors_) + model.row_bias_[:, None], filled, atol=2
    )


def test_updates_move_what_they_touch_alone() -> None:
    matrix = ratings()
    matrix[2, [4, 5]] = np.nan
    model = MatrixCompletion(2, reg=1.0, random_state=0).fit(matrix)
    before = model.row_factors_.copy(), model.components_.copy()
    new = np.full((2, 30), np.nan)
    new[0, [3, 4, 9]], new[1, [4, 5]] = (5.0, 1.0, 4.0), (2.0, 2.0)
    model.partial_fit(new, rows=[40, 2])
    assert model.row_factors_.shape == (41, 2)
    touched = np.isin(np.arange(30), [3, 4, 5, 9])
    assert (model.components_[:, ~touched] == before[1][:, ~touched]).all()
    assert (np.delete(model.row_factors_[:40], 2, 0) == np.delete(before[0], 2, 0)).all()
    assert (model.components_[:, touched] != before[1][:, touched]).any()
    assert np.abs(model.predict([40, 40], [3, 4]) - [5, 1]).max() < 2
    with pytest.raises(
        ValueError, match="X has 7 features, but MatrixCompletion is expecting 30 features as input"
    ):
        model.partial_fit(new[:, :7])
    with pytest.raises(ValueError, match="rows holds 1 indices: X has 2 rows"):
        model.partial_fit(new, rows=[1])
    with pytest.raises(ValueError, match="negative or repeated"):
        model.partial_fit(new, rows=[1, 1])


def test_updates_by_name() -> None:
    matrix = ratings()
    model = MatrixCompletion(2, reg=1.0, random_state=0).fit(frame(matrix))
    model.partial_fit(
        pd.DataFrame({"user": ["zoe", "zoe", "u001"], "item": [0, 999, 998], "rating": [5.0, 4.0, 1.0]})
    )
    assert list(model.row_ids_[-1:]) == ["zoe"] and 999 in model.col_ids_
    assert np.isfinite(model.predict(["zoe", "u001"], [999, 999])).all()
    with pytest.raises(ValueError, match="X must be a frame"):
        model.partial_fit(ratings(3, 32))


def test_recommendations_are_the_best_that_are_not_excluded() -> None:
    matrix = ratings()
    model = MatrixCompletion(2, reg=1.0, random_state=0).fit(matrix)
    items, scores = model.recommend([4, 0], 5, exclude=matrix)
    for row, chosen, values in zip([4, 0], items, scores, strict=True):
        assert np.isnan(matrix[row, chosen]).all() and (np.diff(values) <= 0).all()
        free = np.flatnonzero(np.isnan(matrix[row]))
        assert values[0] == pytest.approx(model.predict(np.full(len(free), row), free).max())
    full = matrix.copy()
    full[0] = 3.0
    items, scores = model.recommend([0], 5, exclude=full)
    assert (items == -1).all() and np.isneginf(scores).all()
    named = MatrixCompletion(2, reg=1.0, random_state=0).fit(frame(matrix))
    by_name, _ = named.recommend(["u004", "u000"], 5, exclude=frame(matrix))
    np.testing.assert_array_equal(by_name // 10, model.recommend([4, 0], 5, exclude=matrix)[0])


def test_predictions_are_clipped() -> None:
    model = MatrixCompletion(2, reg=0.1, clip=(2.9, 3.1), random_state=0).fit(ratings())
    filled = model.impute(np.where(np.arange(30) == 0, 3.0, np.nan)[None])
    assert filled.min() >= 2.9 and filled.max() <= 3.1


def test_workers_change_nothing() -> None:
    options = {"n_components": 2, "reg": 1.0, "max_iter": 4, "random_state": 0}
    alone = MatrixCompletion(**options).fit(ratings())
    with joblib.parallel_config("threading"):
        shared = MatrixCompletion(**options, n_jobs=3).fit(ratings())
    np.testing.assert_allclose(shared.components_, alone.components_, atol=1e-12)


def test_a_fresh_part_for_each_half_step() -> None:
    truth = low_rank(150, 120, 1)
    model = MatrixCompletion(
        1, reg=0.0, fit_bias=False, max_iter=5, tol=0.0, sample_reuse=False, random_state=0
    ).fit(masked(truth, 0.9))
    error = np.linalg.norm(model.row_factors_ @ model.components_ - truth) / np.linalg.norm(truth)
    assert error < 1e-2


def test_clipping_at_the_incoherence() -> None:
    U = torch.tensor([[0.9, 0.1], [0.1, 0.2]])
    torch.testing.assert_close(clip_incoherent(U, 0.25), torch.tensor([[0.0, 0.1], [0.1, 0.2]]))
    with pytest.raises(ValueError, match="clipping leaves a column of zeros"):
        MatrixCompletion(**EXACT | {"incoherence": 1e-3}).fit(DATA)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is made."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
                self.most = max(self.most, leaf.untyped_storage().nbytes())
        return made


@pytest.mark.filterwarnings("ignore:.*entries are given more than once")
def test_nothing_of_the_size_of_the_matrix_is_made() -> None:
    """400 million entries, of which two thousand are known: 3.2 GB, were they ever written out."""
    rng, size = np.random.default_rng(0), 20_000
    triplets = rng.integers(0, size, 2000), rng.integers(0, size, 2000), rng.normal(size=2000)
    tracemalloc.start()
    with Largest() as tensors:
        MatrixCompletion(4, max_iter=2, random_state=0).fit(triplets, shape=(size, size))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 < tensors.most < 2**25 and peak < 2**26


@pytest.mark.parametrize(
    ("change", "data", "message"),
    [
        ({"n_components": 61}, DATA, "n_components is 61: at most 60"),
        ({}, np.full((3, 4), np.nan), "no observed entry"),
        ({}, np.ones((30, 40)), "nothing in it is missing .* all_observed=True"),
        ({}, sp.csr_array((0, 4)), r"0 sample\(s\)"),
        ({}, sp.csr_array((4, 5)), "no observed entry"),
        ({}, sp.csr_array([[1.0, np.nan], [np.inf, 2.0]]), "NaN or infinity among the observed"),
        ({}, ([0, 1], [0, 99], [1.0, 2.0]), r"column indices from 0 to 99: they must lie in \[0, 80\)"),
        ({}, ([0, -1], [0, 1], [1.0, 2.0]), "row indices from -1 to 0"),
        ({}, ([0, 1], [0], [1.0, 2.0]), "give as many"),
        ({}, (["a"], [0], [1.0]), "give whole numbers, or a pandas frame"),
        ({}, pd.DataFrame({"user": [1], "item": [2]}), "one named rating, value or score is missing"),
        ({}, pd.DataFrame({"user": [1, None], "item": [2, 2], "rating": [1.0, 2.0]}), "missing ids"),
        ({"clip": (5, 1)}, DATA, "clip is"),
        ({"init": np.ones((3, 3))}, DATA, r"init has shape \(3, 3\)"),
        ({"n_components": 2}, DATA[:1], "n_components is 2: at most 1"),
        ({"n_components": 2}, DATA[:, :1], "n_components is 2: at most 1"),
        ({"solver": "qr"}, DATA, r"^solver is .*: give "),
        (
            {"orthonormal": True},
            DATA,
            "orthonormal=True with reg='auto': beside a ridge it changes the answer",
        ),
        ({"orthonormal": True, "reg": 0.5}, DATA, "orthonormal=True with reg=0.5"),
    ],
)
def test_bad_input(change, data, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatrixCompletion(**{"n_components": 1} | change).fit(
            data, shape=(M, N) if isinstance(data, tuple) else None
        )


def test_bad_weights_and_bad_questions() -> None:
    for weight, message in ((np.ones(3), "sample_weight has shape"), (-np.ones(M), "negative")):
        with pytest.raises(ValueError, match=message):
            MatrixCompletion(1).fit(DATA, sample_weight=weight)
    model = MatrixCompletion(1).fit(DATA)
    for call, message in (
        (
            lambda: model.predict([0, M], [0, 0]),
            r"rows holds indices from 0 to 60: they must lie in \[0, 60\)",
        ),
        (lambda: model.predict([0], [-1]), "cols holds indices from -1"),
        (lambda: model.predict([0, 1], [0]), "give as many of both"),
        (lambda: model.predict(np.ones((2, 3), int)), "give pairs"),
        (lambda: model.transform(DATA[:, :5]), "X has 5 features, but MatrixCompletion is expecting 80"),
        (lambda: model.score(DATA[:5]), "X has shape"),
        (lambda: model.recommend([0], 81), "k is 81"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_one_row() -> None:
    row = masked(np.arange(1.0, 11.0)[None], 0.7)
    model = MatrixCompletion(1, reg=0.0, fit_bias=False).fit(row)
    there = ~np.isnan(row)
    np.testing.assert_allclose((model.row_factors_ @ model.components_)[there], row[there])


def test_a_sketch_too_thin_for_the_plain_iteration_diverges_and_nothing_is_fitted() -> None:
    model = MatrixCompletion(
        4,
        reg=0.0,
        fit_bias=False,
        solver="sketch-unit",
        sketch_factor=2,
        cg_steps=60,
        tol=0.0,
        random_state=0,
    )
    with pytest.raises(FloatingPointError, match="solver='sketch-unit' diverged"):
        model.fit(masked(low_rank(100, 80, 4, low=0.1), 0.9))
    assert not hasattr(model, "row_factors_")


def test_an_id_is_text_whatever_it_looks_like() -> None:
    random = np.random.default_rng(0)
    items = sorted("abcdefgh" * 3)
    text = pd.DataFrame({"user": ["1", "2", "3"] * 8, "item": items, "rating": random.random(24)})
    mixed = text.assign(user=pd.Series([1, "2", 3.0, "1", 2, "3"] * 4, dtype=object))
    whole = text.assign(user=[1, 2, 3] * 8)
    fits = [MatrixCompletion(2, random_state=0).fit(frame) for frame in (text, mixed, whole)]
    assert fits[1].row_ids_.tolist() == ["1", "2", "3"]
    assert fits[2].row_ids_.tolist() == [1, 2, 3]
    for model in fits[1:]:
        for users in (["1", "3"], [1, 3], [1.0, 3.0]):
            np.testing.assert_array_equal(
                model.predict(users, ["a", "b"]), fits[0].predict(["1", "3"], ["a", "b"])
            )
        assert len(set(model.predict(["4", "01"], ["a", "a"]))) == 1, "unknown, both"


def test_entries_by_column_and_whole_rows_drawn_at_random() -> None:
    rows, cols = np.array([0, 0, 2, 2, 2, 3]), np.array([1, 4, 0, 1, 3, 1])
    data = Observations(rows, cols, np.arange(6.0), np.arange(1.0, 7.0), None, (4, 5))
    kept = np.array([True, False, True, True, True, True])
    for taken in (None, kept):
        order = np.lexsort((rows, cols))
        order = order if taken is None else order[taken[order]]
        turned = data.compress(data.values, 1, taken, torch.empty(0))
        assert turned.pointer.dtype == torch.int64
        counted = np.bincount(cols[order], minlength=5)
        np.testing.assert_array_equal(turned.pointer.diff(), counted)
        np.testing.assert_array_equal(turned.column, rows[order])
        np.testing.assert_array_equal(turned.value, data.values[order])
        np.testing.assert_array_equal(turned.weight, data.weights[order])
    np.testing.assert_array_equal(data.pointer(), [0, 2, 2, 5, 6])
    for entries, least in ((1, 0), (3, 1), (100, 6)):
        part = data.some_rows(entries, np.random.RandomState(0))
        assert len(part.values) >= least and part.shape[1] == 5
        for row in range(part.shape[0]):  # each is one of the rows, whole
            mine = part.values[part.rows == row]
            assert any(np.array_equal(mine, data.values[data.rows == other]) for other in range(4))
        np.testing.assert_array_equal(part.weights, part.values + 1)
    assert data.some_rows(100, np.random.RandomState(0)).shape == (4, 5)


def test_the_ridge_of_large_data_is_that_of_some_rows(monkeypatch) -> None:
    truth = 4 + 80 * low_rank(150, 60, 3)
    X = masked(truth + 0.3 * np.random.default_rng(1).normal(size=truth.shape), 0.6, 2)
    asked = []
    some_rows = Observations.some_rows
    monkeypatch.setattr(
        Observations, "some_rows", lambda self, n, random: asked.append(n) or some_rows(self, n, random)
    )
    whole = MatrixCompletion(3, random_state=0).fit(X)
    assert not asked
    monkeypatch.setattr(_fit, "ENOUGH", 2000)
    part = MatrixCompletion(3, random_state=0).fit(X)
    wrong = [float(np.linalg.norm((model.impute(X) - truth)[np.isnan(X)])) for model in (whole, part)]
    assert asked == [2000] and part.reg_ != whole.reg_ and wrong[1] < 1.1 * wrong[0]
    MatrixCompletion(3, random_state=0, reg_scaling="count").fit(X)
    MatrixCompletion(3, random_state=0, init=np.ones((150, 3))).fit(X)
    assert asked == [2000]


def test_each_half_step_has_a_part_of_its_own() -> None:
    """Without reuse every observation is seen in one half of one iteration, and in no other."""
    data, _ = read(DATA)
    like = torch.zeros(0, dtype=torch.float64)
    halves = halves_of(data, np.arange(len(data.values), dtype=float), 3, np.random.RandomState(0), like)
    seen = [np.sort(half.value.numpy()) for t in range(3) for half in halves(t)]
    assert len(seen) == 6 and all(len(part) > len(data.values) / 12 for part in seen)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(len(data.values)))
    by_column, by_row = halves(1)
    assert len(by_column.pointer) == N + 1 and len(by_row.pointer) == M + 1
