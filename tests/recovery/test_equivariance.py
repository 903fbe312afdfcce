"""No estimator minds the unit of its data or the order of its rows."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import gaussian, light_rows, low_rank, masked, outliers, psd

from eckart.recovery import (
    DenseOperator,
    HiddenEntries,
    MatrixCompletion,
    MatrixSensingGD,
    RobustLowRank,
    StreamingPCA,
)

pytestmark = pytest.mark.filterwarnings("ignore")
UNITS = [2.7e-9, 3.7e9]
A, CLEAN = gaussian(psd(7, 2), 260)
DIRTY = CLEAN + outliers(260, 0.2)
RECTANGULAR, MEASURED = gaussian(low_rank(6, 9, 2), 240)
NOISE = 0.3 * np.random.default_rng(5).normal(size=(60, 40))
TABLE = masked(3 * low_rank(60, 40, 3) + 0.1 * NOISE, 0.7, 1)
RATINGS = np.round(masked(4 + 8 * low_rank(60, 40, 2) + NOISE, 0.6), 6)
GROSS = np.where(np.random.default_rng(2).random((30, 20)) < 0.1, 5.0, 0.0)
SPOILT = masked(low_rank(30, 20, 2) + GROSS, 0.8, 3)
ROWS = light_rows(400, 9, 12.0)
WEIGHTS = np.linspace(0.5, 2, 60)
CLICKS = np.random.default_rng(4).poisson(0.5, (40, 25)).astype(float)


def sensed(y: np.ndarray, **options) -> np.ndarray:
    return MatrixSensingGD(2, **{"random_state": 0, "max_iter": 300} | options).fit(RECTANGULAR, y).matrix_


def robust(y: np.ndarray, **options) -> np.ndarray:
    return RobustLowRank(**{"rank": 2, "max_iter": 300, "random_state": 0} | options).fit(A, y).matrix_


def whole(X: np.ndarray, **options) -> np.ndarray:
    return MatrixCompletion(**{"n_components": 3, "random_state": 0} | options).fit(X).impute(X)


LINEAR = {
    "sensing": (sensed, MEASURED),
    "robust sensing": (robust, DIRTY),
    "sensing, no re-factoring": (lambda y: sensed(y, rebalance="none", momentum=0.5, max_iter=100), MEASURED),
    "sensing, symmetric": (
        lambda y: (
            MatrixSensingGD(2, parametrization="symmetric", random_state=0, max_iter=200).fit(A, y).matrix_
        ),
        CLEAN,
    ),
    "robust sensing, other steps": (
        lambda y: robust(y, step="quantile", max_iter=200),
        DIRTY,
    ),
    "robust sensing, huber": (lambda y: robust(y, loss="huber"), DIRTY),
    "robust sensing, squares": (
        lambda y: robust(y, loss="l2", step="constant", eta0=0.05, max_iter=100),
        CLEAN,
    ),
    "robust sensing, random start": (lambda y: robust(y, init="random", norm="fro", max_iter=150), DIRTY),
    "robust sensing, identity": (lambda y: robust(y, init="identity", step="geometric", max_iter=80), DIRTY),
    "robust sensing, rank unknown": (lambda y: robust(y, rank=None, max_iter=200), DIRTY),
    "robust sensing, oblong, held out": (
        lambda y: (
            RobustLowRank(2, symmetric=False, validation_fraction=0.1, random_state=0, max_iter=150)
            .fit(RECTANGULAR, y)
            .matrix_
        ),
        MEASURED + outliers(240, 0.1),
    ),
    "robust table, rank unknown": (lambda X: RobustLowRank().fit(X).matrix_, SPOILT),
    "robust table, sparse part": (lambda X: RobustLowRank(2, max_iter=150).fit(X).sparse_.toarray(), SPOILT),
    "robust table, new rows": (
        lambda X: (m := RobustLowRank(2, max_iter=150).fit(X[:24])).inverse_transform(m.transform(X[24:])),
        SPOILT,
    ),
    "completion": (whole, RATINGS),
    "completion, count": (lambda X: whole(X, reg_scaling="count"), RATINGS),
    "completion, no biases": (lambda X: whole(X, fit_bias=False), TABLE),
    "completion, given reg 0": (lambda X: whole(X, reg=0.0), TABLE),
    "completion, cg": (lambda X: whole(X, solver="cg", cg_steps=2), RATINGS),
    "completion, sketch": (lambda X: whole(X, solver="sketch", fit_bias=False), TABLE),
    "completion, random start": (lambda X: whole(X, init="random", fit_bias=False), TABLE),
    "completion, random start of ratings": (lambda X: whole(X, init="random", max_iter=6), RATINGS),
    "completion, weighted": (
        lambda X: MatrixCompletion(3, random_state=0).fit(X, sample_weight=WEIGHTS).impute(X),
        RATINGS,
    ),
    "completion, fresh parts": (lambda X: whole(X, n_components=1, sample_reuse=False, max_iter=3), RATINGS),
    "completion, orthonormal, incoherent": (
        lambda X: whole(X, reg=0.0, orthonormal=True, incoherence=3.0, fit_bias=False),
        TABLE,
    ),
    "completion, update": (
        lambda X: (
            MatrixCompletion(2, random_state=0).fit(X[:50]).partial_fit(X[50:], rows=range(50, 60)).row_bias_
        ),
        RATINGS,
    ),
    "completion, hidden entries": (
        lambda X: np.array([HiddenEntries()(MatrixCompletion(2, random_state=0).fit(X[:40]), X[40:])]),
        RATINGS,
    ),
    "stream": (lambda X: StreamingPCA(3, random_state=0).fit(X).singular_values_, ROWS),
    "stream, centred": (
        lambda X: (p := StreamingPCA(2, center=True, random_state=0).fit(X)).inverse_transform(
            p.transform(X)
        ),
        ROWS + 2,
    ),
    "stream, part by part": (
        lambda X: (
            StreamingPCA(0.5, center=True, heavy_factor=3.0, shuffle_buffer=50, n_samples=400, random_state=0)
            .partial_fit(X[:150])
            .partial_fit(X[150:])
            .finalize()
            .singular_values_
        ),
        ROWS + 2,
    ),
    "stream, oja": (
        lambda X: StreamingPCA(2, method="oja", random_state=0).fit(X).singular_values_,
        ROWS,
    ),
    "stream, oja-grid": (
        lambda X: StreamingPCA(method="oja-grid", random_state=0).fit(X).singular_values_,
        ROWS,
    ),
}


@functools.cache
def in_its_own_unit(name: str) -> np.ndarray:
    answer, data = LINEAR[name]
    return answer(data)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_of_the_data_is_that_of_the_answer(name: str, unit: float) -> None:
    answer, data = LINEAR[name]
    found, wanted = answer(unit * data), unit * in_its_own_unit(name)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_of_the_rows_leaves_directions_shares_and_whitened_coordinates(unit: float) -> None:
    for options in ({"center": True, "whiten": True}, {"method": "oja"}):
        first, again = (StreamingPCA(2, random_state=0, **options).fit(u * ROWS) for u in (1.0, unit))
        np.testing.assert_allclose(again.components_, first.components_, atol=1e-9)
        np.testing.assert_allclose(
            again.explained_variance_ratio_, first.explained_variance_ratio_, rtol=1e-9
        )
        turned = again.transform(unit * ROWS) / (1 if options.get("whiten") else unit)
        np.testing.assert_allclose(turned, first.transform(ROWS), atol=1e-9)
        assert again.score(unit * ROWS) == pytest.approx(first.score(ROWS), rel=1e-9)
        assert again.n_heavy_ == first.n_heavy_


def clicked(R: np.ndarray, **options) -> MatrixCompletion:
    return MatrixCompletion(2, implicit=True, **options).fit(sp.csr_array(R))


@pytest.mark.parametrize("unit", UNITS)
def test_counts_in_another_unit_are_confidences_of_another_alpha(unit: float) -> None:
    first, again = clicked(CLICKS, alpha=2.0), clicked(unit * CLICKS, alpha=2.0 / unit)
    assert again.reg_ == pytest.approx(first.reg_, rel=1e-12)
    for name in ("row_factors_", "components_", "loss_history_"):
        np.testing.assert_allclose(getattr(again, name), getattr(first, name), atol=1e-9)


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**31))
def test_permuted_clicks_are_scored_and_ranked_permuted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, cols = rng.permutation(40), rng.permutation(25)
    first, again = clicked(CLICKS), clicked(CLICKS[rows][:, cols])
    scores = (first.row_factors_ @ first.components_)[rows][:, cols]
    np.testing.assert_allclose(again.row_factors_ @ again.components_, scores, atol=1e-9)
    items, values = first.recommend(rows, 5)
    np.testing.assert_array_equal(cols[again.recommend(range(40), 5)[0]], items)
    np.testing.assert_allclose(again.recommend(range(40), 5)[1], values, atol=1e-9)


@pytest.mark.parametrize("unit", [1e-120, 1e120])
@pytest.mark.parametrize("answer", [sensed, robust], ids=["sensing", "robust"])
def test_numbers_whose_squares_leave_the_range_are_no_matter(answer, unit: float) -> None:
    data, wanted = (
        (MEASURED, in_its_own_unit("sensing"))
        if answer is sensed
        else (DIRTY, in_its_own_unit("robust sensing"))
    )
    np.testing.assert_allclose(answer(unit * data) / unit, wanted, atol=1e-5 * np.abs(wanted).max())


def test_sensing_of_numbers_near_the_end_of_the_range_ends() -> None:
    wanted = in_its_own_unit("sensing")
    np.testing.assert_allclose(sensed(1e160 * MEASURED) / 1e160, wanted, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"step": "quantile", "max_iter": 200},
        {"step": "constant", "loss": "l2", "eta0": 0.05},
        {"loss": "huber"},
    ],
)
def test_the_unit_of_the_measurements_divides_the_answer(options) -> None:
    """y = ⟨A, X⟩ holds for (u A, y) with X/u."""
    y = CLEAN if options.get("loss") == "l2" else DIRTY
    wanted = RobustLowRank(2, **options).fit(A, y).matrix_
    for unit in (1e-3, 1e3):
        found = RobustLowRank(2, **options).fit(DenseOperator(unit * A), y).matrix_
        np.testing.assert_allclose(unit * found, wanted, atol=1e-4 * np.abs(wanted).max())
    assert np.linalg.norm(wanted - psd(7, 2)) < 0.05


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**31))
@pytest.mark.parametrize(
    "options",
    [{"reg": 2.0}, {"reg": 0.05, "reg_scaling": "count"}, {"reg": 0.0}, {"reg": 1.0, "fit_bias": False}],
)
def test_permuted_rows_and_columns_are_completed_to_permuted_ones(options, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, cols = rng.permutation(60), rng.permutation(40)
    wanted = whole(RATINGS, **options)[rows][:, cols]
    np.testing.assert_allclose(whole(RATINGS[rows][:, cols], **options), wanted, rtol=1e-6, atol=1e-7)


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**31))
def test_permuted_tables_and_measurements_are_recovered_permuted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, cols, order = rng.permutation(30), rng.permutation(20), rng.permutation(260)
    first, again = fitted_three()[2], RobustLowRank(2).fit(SPOILT[rows][:, cols])
    np.testing.assert_allclose(again.matrix_, first.matrix_[rows][:, cols], atol=1e-4)
    np.testing.assert_array_equal(again.outlier_mask_, first.outlier_mask_[rows][:, cols])
    np.testing.assert_allclose(
        RobustLowRank(2, max_iter=300).fit(A[order], DIRTY[order]).matrix_,
        in_its_own_unit("robust sensing"),
        atol=1e-4,
    )
    order = order[order < 240]
    sensing = MatrixSensingGD(2, random_state=0, max_iter=300).fit(RECTANGULAR[order], MEASURED[order])
    np.testing.assert_allclose(sensing.matrix_, in_its_own_unit("sensing"), atol=1e-9)


@pytest.mark.parametrize(
    "options", [{}, {"center": True, "heavy_factor": 3.0}, {"method": "oja"}, {"method": "oja-grid"}]
)
def test_permuted_columns_of_a_stream_are_permuted_components(options) -> None:
    order = np.random.default_rng(0).permutation(9)
    start, k = np.random.default_rng(1).normal(size=(9, 6)), 1 if options.get("method") == "oja-grid" else 2
    first, again = (
        StreamingPCA(k, init=start[turn], **options).fit(ROWS[:, turn]) for turn in (np.arange(9), order)
    )
    np.testing.assert_allclose(np.abs(again.components_), np.abs(first.components_[:, order]), atol=1e-10)
    np.testing.assert_allclose(again.mean_, first.mean_[order], atol=1e-12)
    assert again.heavy_indices_.tolist() == first.heavy_indices_.tolist()


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**31))
def test_new_rows_in_another_order_are_placed_in_that_order(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(20)
    table, robust_ones = RATINGS[40:], SPOILT[10:]
    completion, stream, low = fitted_three()
    for model, rows in ((completion, table), (stream, ROWS[:20]), (low, robust_ones)):
        np.testing.assert_allclose(model.transform(rows[order]), model.transform(rows)[order], atol=1e-6)
    np.testing.assert_allclose(completion.impute(table[order]), completion.impute(table)[order], atol=1e-9)
    assert completion.score(RATINGS) == pytest.approx(
        MatrixCompletion(2, reg=2.0, random_state=0).fit(RATINGS[::-1]).score(RATINGS[::-1]), rel=1e-9
    )


@functools.cache
def fitted_three() -> tuple[MatrixCompletion, StreamingPCA, RobustLowRank]:
    return (
        MatrixCompletion(2, reg=2.0, random_state=0).fit(RATINGS),
        StreamingPCA(2, random_state=0).fit(ROWS),
        RobustLowRank(2).fit(SPOILT),
    )


def test_the_ridge_found_follows_the_data() -> None:
    """In units of the data it is the same; noise raises it; without noise it is zero."""
    fits = [MatrixCompletion(3, random_state=0).fit(unit * RATINGS).reg_ for unit in (1.0, 10.0)]
    assert fits[1] == pytest.approx(10 * fits[0], rel=1e-6)
    exact = MatrixCompletion(3, fit_bias=False, random_state=0, max_iter=60).fit(
        masked(low_rank(60, 40, 3), 0.7)
    )
    assert exact.reg_ == 0
    noisy = [
        MatrixCompletion(3, fit_bias=False, random_state=0)
        .fit(masked(low_rank(60, 40, 3) + s * NOISE, 0.7))
        .reg_
        for s in (0.1, 1.0)
    ]
    assert 0 < noisy[0] < noisy[1]
    plain, weighted = (
        MatrixCompletion(3, fit_bias=False, random_state=0).fit(RATINGS, sample_weight=np.full(60, w)).reg_
        for w in (1.0, 4.0)
    )
    assert weighted == pytest.approx(4 * plain, rel=1e-6)


def test_the_ridge_found_predicts_better_than_others() -> None:
    truth = low_rank(60, 40, 3)
    X = masked(truth + 0.1 * NOISE, 0.5)
    found = MatrixCompletion(8, fit_bias=False, random_state=0).fit(X)

    def error(reg: float) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = MatrixCompletion(8, reg=reg, fit_bias=False, random_state=0).fit(X)
        return float(np.linalg.norm(model.row_factors_ @ model.components_ - truth))

    assert error(found.reg_) < 0.9 * min(error(8 * found.reg_), error(found.reg_ / 8))
