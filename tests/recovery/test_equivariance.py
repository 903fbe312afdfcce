"""No estimator minds the unit of its data or the order of its rows."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import gaussian, light_rows, low_rank, masked, outliers, psd

from eckart.recovery import DenseOperator, MatrixCompletion, MatrixSensingGD, RobustLowRank, StreamingPCA

pytestmark = pytest.mark.filterwarnings("ignore")
UNITS = [2.0**-30, 3.7, 2.0**30]
A, CLEAN = gaussian(psd(7, 2), 260)
DIRTY = CLEAN + outliers(260, 0.2)
RECTANGULAR, MEASURED = gaussian(low_rank(6, 9, 2), 240)
NOISE = 0.3 * np.random.default_rng(5).normal(size=(60, 40))
TABLE = masked(3 * low_rank(60, 40, 3) + 0.1 * NOISE, 0.7, 1)
RATINGS = np.round(masked(4 + 8 * low_rank(60, 40, 2) + NOISE, 0.6), 6)
GROSS = np.where(np.random.default_rng(2).random((30, 20)) < 0.1, 5.0, 0.0)
SPOILT = masked(low_rank(30, 20, 2) + GROSS, 0.8, 3)
ROWS = light_rows(400, 9, 12.0)


def sensed(y: np.ndarray) -> np.ndarray:
    return MatrixSensingGD(2, random_state=0, max_iter=300).fit(RECTANGULAR, y).matrix_


def robust(y: np.ndarray) -> np.ndarray:
    return RobustLowRank(2, max_iter=300).fit(A, y).matrix_


def whole(X: np.ndarray, **options) -> np.ndarray:
    return MatrixCompletion(**{"n_components": 3, "random_state": 0} | options).fit(X).impute(X)


LINEAR = {
    "sensing": (sensed, MEASURED),
    "robust sensing": (robust, DIRTY),
    "robust sensing, other steps": (
        lambda y: RobustLowRank(2, step="quantile", eta0=0.3, max_iter=200).fit(A, y).matrix_,
        DIRTY,
    ),
    "robust sensing, huber": (
        lambda y: RobustLowRank(2, loss="huber", max_iter=300).fit(A, y).matrix_,
        DIRTY,
    ),
    "robust table, rank unknown": (lambda X: RobustLowRank().fit(X).matrix_, SPOILT),
    "robust table, sparse part": (lambda X: RobustLowRank(2, max_iter=300).fit(X).sparse_.toarray(), SPOILT),
    "robust table, new rows": (
        lambda X: (m := RobustLowRank(2, max_iter=300).fit(X[:24])).inverse_transform(m.transform(X[24:])),
        SPOILT,
    ),
    "completion": (whole, RATINGS),
    "completion, count": (lambda X: whole(X, reg_scaling="count"), RATINGS),
    "completion, no biases": (lambda X: whole(X, fit_bias=False), TABLE),
    "completion, given reg 0": (lambda X: whole(X, reg=0.0), TABLE),
    "stream": (lambda X: StreamingPCA(3, random_state=0).fit(X).singular_values_, ROWS),
    "stream, oja": (
        lambda X: StreamingPCA(2, method="oja", random_state=0).fit(X).singular_values_,
        ROWS,
    ),
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_of_the_data_is_that_of_the_answer(name: str, unit: float) -> None:
    answer, data = LINEAR[name]
    found, wanted = answer(unit * data), unit * answer(data)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("unit", [1e-120, 1e120])
@pytest.mark.parametrize("answer", [sensed, robust], ids=["sensing", "robust"])
def test_numbers_whose_squares_leave_the_range_are_no_matter(answer, unit: float) -> None:
    data = MEASURED if answer is sensed else DIRTY
    wanted = answer(data)
    np.testing.assert_allclose(answer(unit * data) / unit, wanted, atol=1e-5 * np.abs(wanted).max())


def test_sensing_of_numbers_near_the_end_of_the_range_ends() -> None:
    wanted = sensed(MEASURED)
    np.testing.assert_allclose(sensed(1e160 * MEASURED) / 1e160, wanted, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("unit", [1e-3, 1e3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"step": "quantile", "max_iter": 200},
        {"step": "constant", "loss": "l2", "eta0": 0.05},
        {"loss": "huber"},
    ],
)
def test_the_unit_of_the_measurements_divides_the_answer(options, unit: float) -> None:
    """y = ⟨A, X⟩ holds for (u A, y) with X/u."""
    y = CLEAN if options.get("loss") == "l2" else DIRTY
    wanted = RobustLowRank(2, **options).fit(A, y).matrix_
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
    first, again = RobustLowRank(2).fit(SPOILT), RobustLowRank(2).fit(SPOILT[rows][:, cols])
    np.testing.assert_allclose(again.matrix_, first.matrix_[rows][:, cols], atol=1e-4)
    np.testing.assert_array_equal(again.outlier_mask_, first.outlier_mask_[rows][:, cols])
    np.testing.assert_allclose(
        RobustLowRank(2, max_iter=300).fit(A[order], DIRTY[order]).matrix_, robust(DIRTY), atol=1e-4
    )
    order = order[order < 240]
    sensing = MatrixSensingGD(2, random_state=0, max_iter=300).fit(RECTANGULAR[order], MEASURED[order])
    np.testing.assert_allclose(sensing.matrix_, sensed(MEASURED), atol=1e-9)


def test_permuted_columns_of_a_stream_are_permuted_components() -> None:
    order = np.random.default_rng(0).permutation(9)
    start = np.random.default_rng(1).normal(size=(9, 6))
    first = StreamingPCA(2, init=start).fit(ROWS).components_
    again = StreamingPCA(2, init=start[order]).fit(ROWS[:, order]).components_
    np.testing.assert_allclose(np.abs(again), np.abs(first[:, order]), atol=1e-10)


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
