"""SubGM: the sub-gradient, the start, what outliers and over-estimated rank do, and what it refuses."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from problems import gaussian, low_rank, outliers, psd
from sklearn.exceptions import ConvergenceWarning

from eckart.linalg.subgradient import (
    direction,
    loss_and_slope,
    signed_mean,
    spectral_factors,
    weighted_quantile,
)
from eckart.recovery import DenseOperator, EntryOperator, RankOneOperator, RobustLowRank

D, R, M = 12, 2, 700
X = psd(D, R)
A, CLEAN = gaussian(X, M)
DIRTY = CLEAN + outliers(M, 0.3)


@functools.cache
def fitted(rank: int | None = None) -> RobustLowRank:
    return RobustLowRank(rank, eta0=0.2).fit(A, DIRTY)


def error(fitted: RobustLowRank, target: np.ndarray = X) -> float:
    return float(np.linalg.norm(fitted.matrix_ - target))


@pytest.mark.parametrize("loss", ["l1", "l2", "huber"])
def test_direction_equals_autograd(loss) -> None:
    operator, y = DenseOperator(A), torch.as_tensor(DIRTY)
    U = torch.randn(D, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value, slope = loss_and_slope(operator.forward(U, U) - y, loss, 3.0)
    value.mean().backward()
    moved = direction(operator.adjoint(slope / M), U, U)[0]
    torch.testing.assert_close(moved, U.grad, rtol=1e-10, atol=1e-12)


def test_spectral_start_is_the_positive_part_and_looks_at_signs_alone() -> None:
    operator, shares = DenseOperator(A), torch.full((M,), 1 / M, dtype=torch.float64)
    C = signed_mean(operator, torch.as_tensor(DIRTY).sign(), shares)
    B = spectral_factors(C, D)[0]
    values, vectors = torch.linalg.eigh(C)
    torch.testing.assert_close(B @ B.mT, (vectors * values.clamp_min(0)) @ vectors.mT)
    cosine = (C * torch.as_tensor(X)).sum() / (C.norm() * np.linalg.norm(X))
    assert cosine > 0.8


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("rank", [R, None])
def test_recovers_under_outliers_whatever_the_rank(share: float, rank) -> None:
    y = CLEAN + outliers(M, share)
    fitted = RobustLowRank(rank, eta0=0.2, alpha=1e-4, decay=0.985, max_iter=900).fit(A, y)
    assert error(fitted) < 5e-3 and fitted.effective_rank_ == R
    assert fitted.factor_.shape == (D, R) and fitted.converged_


def test_squares_fail_where_absolute_values_do_not() -> None:
    squares = RobustLowRank(loss="l2", step="constant", eta0=0.1, scale=1.0, alpha=1e-1, tol=1e-5).fit(
        A, DIRTY
    )
    assert error(squares) > 100 * error(fitted())


def test_the_size_of_outliers_does_not_matter() -> None:
    larger = [RobustLowRank(eta0=0.2).fit(A, CLEAN + s * outliers(M, 0.3)) for s in (1e3, 1e6)]
    errors = [error(found) for found in (fitted(), *larger)]
    assert max(errors) < 4 * min(errors) and max(errors) < 1e-2


def test_the_floor_falls_with_the_start() -> None:
    errors = [
        error(
            RobustLowRank(D, eta0=0.2, decay=0.99, max_iter=1500, alpha=alpha, scale=1.0, norm="fro").fit(
                A, DIRTY
            )
        )
        for alpha in (1e-1, 1e-2, 1e-3, 1e-4)
    ]
    assert errors == sorted(errors, reverse=True) and errors[0] > 5 * errors[-1]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_time_to_an_error_does_not_depend_on_the_rank() -> None:
    def iterations(rank: int) -> int:
        course = []
        RobustLowRank(
            rank,
            eta0=0.2,
            scale=1.0,
            max_iter=250,
            callback=lambda t, info: course.append(info["factor"].numpy()),
        ).fit(A, DIRTY)
        return next(t for t, U in enumerate(course) if np.linalg.norm(U @ U.T - X) < 5e-2)

    few, many = iterations(R), iterations(D)
    assert abs(few - many) <= 0.1 * few


def test_outliers_are_pointed_out() -> None:
    errors = outliers(M, 0.2)
    gross = np.abs(errors) > 0.5
    fitted = RobustLowRank(R, eta0=0.2).fit(A, CLEAN + errors)
    assert fitted.outlier_mask_[gross].all()
    assert fitted.outlier_mask_[errors == 0].mean() < 0.05


def test_rank_one_and_dense_give_the_same_iterates() -> None:
    a = np.random.default_rng(0).normal(size=(200, 6))
    matrices = np.einsum("mi,mj->mij", a, a)
    y = np.einsum("mij,ij->m", matrices, psd(6, 1))
    options = {"rank": 3, "max_iter": 60, "tol": 0.0}
    with pytest.warns(ConvergenceWarning):
        fits = [RobustLowRank(**options).fit(form, y) for form in (matrices, a, RankOneOperator(a))]
    for fitted in fits[1:]:
        np.testing.assert_allclose(fitted.matrix_, fits[0].matrix_, rtol=1e-8, atol=1e-10)


def test_rotations_of_the_start_change_nothing() -> None:
    rng = np.random.default_rng(0)
    U, Q = 0.1 * rng.normal(size=(D, 3)), np.linalg.qr(rng.normal(size=(3, 3)))[0]
    with pytest.warns(ConvergenceWarning):
        fits = [RobustLowRank(init=start, max_iter=50).fit(A, DIRTY) for start in (U, U @ Q)]
    np.testing.assert_allclose(fits[0].matrix_, fits[1].matrix_, atol=1e-8)


@pytest.mark.parametrize(
    "options", [{"step": "quantile"}, {"step": "geometric", "decay": 0.985, "max_iter": 1000}]
)
def test_other_step_rules(options) -> None:
    assert error(RobustLowRank(R, **{"eta0": 0.3, "tol": 1e-6} | options).fit(A, DIRTY)) < 1e-2


def test_a_given_unit_divides_y_and_leaves_the_steps_as_they_are() -> None:
    options = {"step": "geometric", "eta0": 0.05, "max_iter": 3, "tol": 0.0}
    with pytest.warns(ConvergenceWarning):
        given, found = (
            RobustLowRank(R, scale=scale, **options).fit(7 * A, 7 * DIRTY) for scale in (2.0, "auto")
        )
    np.testing.assert_allclose(given.step_sizes_, 0.05 * 0.98 ** np.arange(3), rtol=1e-12)
    gauge = np.sqrt(D * D / (7 * A).reshape(M, -1).__pow__(2).sum(1).mean())
    np.testing.assert_allclose(found.step_sizes_, gauge * given.step_sizes_, rtol=1e-9)
    np.testing.assert_allclose(found.scale_, np.median(np.abs(7 * DIRTY)) / 0.6745 * gauge, rtol=1e-9)


@pytest.mark.parametrize(
    ("loss", "step", "power"), [("l2", "constant", 2), ("l1", "constant", 1), ("l2", "residual", 3)]
)
def test_steps_are_measured_in_the_unit_of_the_measurements(loss: str, step: str, power: int) -> None:
    def first(unit: float) -> float:
        options = {"loss": loss, "step": step, "eta0": 0.01, "max_iter": 1, "tol": 0.0}
        with pytest.warns(ConvergenceWarning):
            fitted = RobustLowRank(R, **options).fit(unit * A, unit * DIRTY)
        size = np.abs(fitted.predict(unit * A) - unit * DIRTY).mean() / fitted.scale_
        return fitted.step_sizes_[0] / (size if step == "residual" else 1.0)

    assert first(4.0) == pytest.approx(first(1.0) / 4**power, rel=1e-3)


def test_residual_rule_falls_linearly_without_outliers() -> None:
    course = []
    RobustLowRank(
        R,
        step="residual",
        eta0=0.1,
        scale=1.0,
        tol=1e-9,
        callback=lambda t, info: course.append(
            np.linalg.norm((info["factor"] @ info["factor"].mT).numpy() - X)
        ),
    ).fit(A, CLEAN)
    logs = np.log([e for e in course if 1e-6 < e < 0.1])
    slopes = np.diff(logs[:: len(logs) // 4])
    assert slopes.max() < 0 and slopes.min() > 1.5 * slopes.max()


def test_a_rectangular_matrix() -> None:
    target = low_rank(8, 11, 2)
    measured, y = gaussian(target, 900)
    fitted = RobustLowRank(4, symmetric=False, eta0=0.2).fit(measured, y + outliers(900, 0.2))
    assert error(fitted, target) < 1e-2 * np.linalg.norm(target)
    assert fitted.factor_.shape == (8, 4) and fitted.right_factor_.shape == (11, 4)
    np.testing.assert_allclose(fitted.eigenvalues_, np.linalg.svd(fitted.matrix_)[1][:4], atol=1e-8)


def test_entries_with_outliers() -> None:
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(0, 20, (2, 1200))
    target = psd(20, 2)
    y = target[rows, cols] + outliers(1200, 0.1, 1.0)
    fitted = RobustLowRank(4, eta0=0.2, max_iter=900, decay=0.985).fit(EntryOperator(rows, cols, (20, 20)), y)
    assert error(fitted, target) < 0.05


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_holding_out_ends_early_and_returns_the_best() -> None:
    noisy, course = CLEAN + np.random.default_rng(3).normal(size=M), []
    held = RobustLowRank(
        D,
        max_iter=1500,
        decay=0.995,
        tol=0.0,
        validation_fraction=0.2,
        patience=60,
        random_state=0,
        callback=lambda t, info: course.append((info["factor"] @ info["factor"].mT).numpy()),
    ).fit(A, noisy)
    assert 100 < held.n_iter_ < 1500
    np.testing.assert_allclose(held.matrix_, course[held.n_iter_ - 61], atol=1e-12)
    assert error(held) < 0.6 * np.linalg.norm(X)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_weights_of_zero_leave_measurements_out() -> None:
    used = np.random.default_rng(0).random(M) < 0.7
    weighted = RobustLowRank(R, max_iter=200).fit(A, DIRTY, sample_weight=used.astype(float))
    chosen = RobustLowRank(R, max_iter=200).fit(A[used], DIRTY[used])
    np.testing.assert_allclose(weighted.matrix_, chosen.matrix_, atol=1e-6)
    assert weighted.outlier_mask_.shape == (M,)


@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 1.0])
def test_quantiles_are_numpys_and_weights_are_repetitions(q: float) -> None:
    values, times = torch.tensor([3.0, 1.0, 2.0, 7.0]), torch.tensor([1.0, 2.0, 3.0, 1.0])
    assert float(weighted_quantile(values, q)) == pytest.approx(np.quantile(values.numpy(), q))
    repeated = np.repeat(values.numpy(), times.int().numpy())
    assert float(weighted_quantile(values, q, times)) == pytest.approx(np.quantile(repeated, q))


def test_score_is_minus_the_median() -> None:
    residual = np.abs(fitted(R).predict(A) - CLEAN)
    assert fitted(R).score(A, CLEAN) == pytest.approx(-np.median(residual))


def test_too_few_steps_are_reported() -> None:
    with pytest.warns(
        ConvergenceWarning, match=r"a start that never grew: the steps add up to .*, raise eta0"
    ):
        RobustLowRank(eta0=0.02, max_iter=200).fit(A, CLEAN)


@pytest.mark.parametrize(
    ("change", "data", "message"),
    [
        ({"rank": 13}, (A, CLEAN), "rank is 13: at most 12"),
        ({}, (A, CLEAN[:-1]), "inconsistent numbers of samples"),
        ({}, (A, np.where(np.arange(M) == 3, np.nan, CLEAN)), "Input y contains NaN"),
        ({}, (A[:0], CLEAN[:0]), "0 sample"),
        ({}, (A[:, :, :5], CLEAN), r"shape \(12, 5\): symmetric=False"),
        ({"init": (np.ones((D, 2)),), "symmetric": False}, (A, CLEAN), "init holds 1 factors"),
        ({"init": np.ones((5, 2))}, (A, CLEAN), r"init has shape \(5, 2\)"),
        ({"eta0": 0.0}, (A, CLEAN), r"^eta0 is .*: give "),
        ({"validation_fraction": 0.001}, (A[:100], CLEAN[:100]), "one part is empty"),
    ],
)
def test_bad_input(change, data, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RobustLowRank(**change).fit(*data)


def test_predict_refuses_measurements_of_another_shape() -> None:
    with pytest.raises(
        ValueError, match=r"measures matrices of shape \(5, 5\), but RobustLowRank was fitted on"
    ):
        fitted(R).predict(A[:, :5, :5])


def test_divergence_is_an_error_and_nothing_is_fitted() -> None:
    model = RobustLowRank(loss="l2", step="constant", eta0=1e3)
    with pytest.raises(FloatingPointError, match="diverged"):
        model.fit(A, CLEAN)
    assert not hasattr(model, "factor_")
