"""RobustLowRank on tables: what is low-rank, what is an outlier, which rank, which unit, and new rows."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from problems import masked
from sklearn.datasets import load_sample_image
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import pad

from eckart.linalg.completion import least_absolute
from eckart.recovery import EntryOperator, IdentityOperator, RobustLowRank
from eckart.recovery._forms import read
from eckart.recovery._measured import HoldOut, Measured
from eckart.recovery._table import polished

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
N, D, R = 60, 45, 2


def problem(
    n: int = N, d: int = D, r: int = R, share: float = 0.1, size: float = 10.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian product of rank r, and outliers of ``size`` of its standard deviations."""
    rng = np.random.default_rng(seed)
    L = rng.normal(size=(n, r)) @ rng.normal(size=(r, d))
    return L, np.where(rng.random((n, d)) < share, rng.uniform(-size, size, (n, d)) * L.std(), 0)


L, S = problem()


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_the_plainest_robust_pca_is_exact_at_the_defaults() -> None:
    low, gross = problem(120, 120, 5)
    fitted = RobustLowRank(max_iter=500).fit(low + gross)
    assert relative(fitted.matrix_, low) < 1e-4 and fitted.effective_rank_ == 5
    assert fitted.factor_.shape == fitted.right_factor_.shape == (120, 5)


@pytest.mark.parametrize("share", [0.0, 0.2])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_low_rank_and_sparse_parts_of_a_table_with_holes(share: float, missing: float) -> None:
    low, gross = problem(share=share)
    X = masked(low + gross, 1 - missing) if missing else low + gross
    fitted = RobustLowRank().fit(X)
    there = ~np.isnan(X)
    assert relative(fitted.matrix_, low) < 1e-4 and fitted.effective_rank_ == R and fitted.converged_
    clear = there & (np.abs(gross) > 0.01 * low.std())
    assert fitted.outlier_mask_[clear].all() and not fitted.outlier_mask_[there & (gross == 0)].any()
    assert fitted.sparse_.shape == X.shape and fitted.sparse_.nnz == fitted.outlier_mask_.sum()
    found = fitted.sparse_.toarray()
    np.testing.assert_allclose(
        found[fitted.outlier_mask_], (X - fitted.matrix_)[fitted.outlier_mask_], atol=1e-9
    )


WIDE, _ = problem(90, 50, 5, seed=3)
U5, _, V5 = np.linalg.svd(WIDE, full_matrices=False)
WIDE = (U5[:, :5] * [33, 10, 4, 2, 1]) @ V5[:5]


@pytest.mark.parametrize("rank", [None, 5, 9])
def test_a_wide_spectrum_is_exact_whether_the_rank_is_told_or_not(rank) -> None:
    gross = np.where(np.random.default_rng(2).random(WIDE.shape) < 0.1, 2.0, 0)
    fitted = RobustLowRank(rank, random_state=0).fit(masked(WIDE + gross, 0.9))
    assert relative(fitted.matrix_, WIDE) < 1e-5 and fitted.effective_rank_ == 5
    assert fitted.factor_.shape[1] == fitted.right_factor_.shape[1] == (rank or 5)
    assert not fitted.eigenvalues_[5:].any()


def test_a_photograph_keeps_more_than_its_mean_brightness() -> None:
    image = load_sample_image("china.jpg").mean(2)[::10, ::10] / 255
    random = np.random.default_rng(0)
    spoilt = np.where(random.random(image.shape) < 0.1, random.integers(0, 2, image.shape), image)
    spoilt[random.random(image.shape) < 0.2] = np.nan
    damaged = spoilt != image

    def wrong(guess: np.ndarray) -> float:
        return float(np.sqrt(np.mean((guess - image)[damaged] ** 2)))

    one, ten = (RobustLowRank(rank, random_state=0).fit(spoilt) for rank in (1, 10))
    assert ten.effective_rank_ >= 3 and ten.factor_.shape[1] == 10
    assert wrong(ten.matrix_) < 0.8 * wrong(one.matrix_)
    again = RobustLowRank(10, random_state=0).fit(50 * spoilt)
    np.testing.assert_allclose(again.matrix_, 50 * ten.matrix_, rtol=1e-6)


def test_spare_columns_place_no_new_rows() -> None:
    random = np.random.default_rng(5)
    X = masked(L + S + 0.05 * random.normal(size=L.shape), 0.8)
    fitted = RobustLowRank(12, random_state=0).fit(X[:45])
    Z = fitted.transform(X[45:])
    assert fitted.effective_rank_ == R and Z.shape == (15, 12) and not Z[:, R:].any()
    assert relative(fitted.inverse_transform(Z), L[45:]) < 0.1


def test_a_table_without_noise_is_polished_and_others_are_left_alone() -> None:
    left, right = (torch.as_tensor(factor.copy()) for factor in (U5[:, :5] * [33, 10, 4, 2, 1], V5[:5].T))
    moved = left + 1e-3 * torch.randn(
        left.shape, dtype=left.dtype, generator=torch.Generator().manual_seed(0)
    )
    rows, cols = np.nonzero(np.random.default_rng(4).random(WIDE.shape) < 0.8)
    weights = torch.as_tensor(np.random.default_rng(6).uniform(0.5, 2, len(rows)))
    operator = EntryOperator(rows, cols, WIDE.shape)
    for noise, near in ((0.0, True), (0.004, False), (0.1, False)):
        y = torch.as_tensor(WIDE[rows, cols] + noise * np.random.default_rng(7).normal(size=len(rows)))
        task = Measured(operator, y, weights, False)
        spare = pad(moved, (0, 2)), pad(right, (0, 2))
        U, V = polished(task, spare)
        assert U.shape == (90, 7) and V.shape == (50, 7)
        if near:
            assert relative((U @ V.mT).numpy(), WIDE) < 1e-6
        else:
            assert U is spare[0] and V is spare[1]


def test_noise_adds_no_columns_and_costs_little_more_than_knowing_the_rank() -> None:
    noise = 0.3 * np.random.default_rng(7).normal(size=(N, D))
    found, told = (RobustLowRank(rank).fit(L + S + noise) for rank in (None, R))
    assert found.effective_rank_ == len(found.components_) == R
    assert relative(found.matrix_, L) < 1.05 * relative(told.matrix_, L) < 0.1


def test_the_unit_is_the_median_entry_over_that_of_a_normal_one_times_the_root_of_all_entries() -> None:
    X = masked(L + S, 0.6)
    fitted = RobustLowRank(R, max_iter=3, tol=1.0).fit(X)
    assert fitted.scale_ == pytest.approx(np.nanmedian(np.abs(X)) / 0.6745 * math.sqrt(N * D), rel=1e-9)
    zeros = RobustLowRank(1, max_iter=2, tol=1.0).fit(np.where(np.eye(9) > 0, 3.0, 0.0))
    assert zeros.scale_ == pytest.approx(3 / 9 * 9)


def test_every_form_of_a_table_is_the_same_table() -> None:
    X = masked(L + S, 0.8)
    rows, cols = np.nonzero(~np.isnan(X))
    sparse = sp.coo_array((X[rows, cols], (rows, cols)), shape=X.shape)
    wanted = RobustLowRank(R, max_iter=60, tol=0.5).fit(X).matrix_
    for form in (sparse, sparse.tocsr(), pd.DataFrame(X, columns=[f"c{j}" for j in range(D)])):
        np.testing.assert_allclose(
            RobustLowRank(R, max_iter=60, tol=0.5).fit(form).matrix_, wanted, atol=1e-9
        )


def test_weights_of_zero_are_missing_entries() -> None:
    used = np.random.default_rng(0).random(L.shape) < 0.7
    options = {"max_iter": 80, "tol": 0.5}
    weighted = RobustLowRank(R, **options).fit(L + S, sample_weight=used.astype(float))
    np.testing.assert_allclose(
        weighted.matrix_, RobustLowRank(R, **options).fit(np.where(used, L + S, np.nan)).matrix_, atol=1e-9
    )


def test_new_rows_with_outliers_and_holes_are_placed_in_the_row_space() -> None:
    fitted = RobustLowRank().fit((L + S)[:40])
    rest = masked((L + S)[40:], 0.8)
    Z = fitted.transform(rest)
    assert Z.shape == (20, R) and relative(fitted.inverse_transform(Z), L[40:]) < 1e-4
    np.testing.assert_allclose(fitted.components_ @ fitted.components_.T, np.eye(R), atol=1e-9)
    assert (
        np.take_along_axis(fitted.components_, np.abs(fitted.components_).argmax(1)[:, None], 1) > 0
    ).all()
    assert list(fitted.get_feature_names_out()) == ["robustlowrank0", "robustlowrank1"]
    np.testing.assert_allclose(fitted.transform(rest[:3]), Z[:3], rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="features"):
        fitted.transform(rest[:, :7])
    with pytest.raises(NotFittedError):
        RobustLowRank().transform(rest)
    rest[1] = np.nan
    assert not fitted.transform(rest)[1].any()


def test_least_absolute_deviations_are_those_of_each_row() -> None:
    """One unknown: the weighted median of the ratios."""
    rng = np.random.default_rng(0)
    v, X = rng.uniform(0.5, 2, 15), rng.normal(size=(4, 15))
    weights = rng.uniform(0.2, 3, (4, 15))
    for w in (None, weights):
        data, _ = read(X, all_observed=True, sample_weight=w)
        V = torch.as_tensor(v)[:, None]
        found = least_absolute(data.compress(data.values, 0, None, V), V, 1e-9, max_iter=2000, tol=1e-12)
        for row in range(4):
            ratio, mass = X[row] / v, v * (1 if w is None else w[row])
            order = np.argsort(ratio)
            median = ratio[order][np.searchsorted(mass[order].cumsum(), mass.sum() / 2)]
            assert float(found[row]) == pytest.approx(median, abs=1e-5)


def test_score_is_minus_the_median_residual() -> None:
    fitted = RobustLowRank(R).fit(L + S)
    noise = 0.2 * np.random.default_rng(3).normal(size=L.shape)
    residual = np.abs(L + noise - fitted.inverse_transform(fitted.transform(L + noise)))
    assert fitted.score(L + noise) == pytest.approx(-np.median(residual), rel=1e-6)
    assert fitted.score(masked(L + S, 0.9)) > -1e-4


def test_in_a_pipeline_saved_loaded_and_refitted_to_measurements(tmp_path) -> None:
    pipe = make_pipeline(StandardScaler(with_mean=False), RobustLowRank(R, max_iter=200)).fit(L + S)
    assert pipe.transform(L + S).shape == (N, R)
    fitted = RobustLowRank(R, max_iter=200).fit(L + S)
    fitted.save(tmp_path / "model")
    loaded = RobustLowRank.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.sparse_.toarray(), fitted.sparse_.toarray())
    np.testing.assert_array_equal(loaded.transform(L[:3]), fitted.transform(L[:3]))
    again = RobustLowRank(R, symmetric=False, max_iter=200).fit(IdentityOperator((N, D)), (L + S).ravel())
    assert not hasattr(again, "sparse_") and again.outlier_mask_.shape == (N * D,)
    np.testing.assert_allclose(again.matrix_, fitted.matrix_, atol=1e-6)


@pytest.mark.parametrize("eta0", [3.0, 10.0, 1e9])
@pytest.mark.parametrize("rank", [R, None])
def test_steps_that_are_too_long_are_refused(eta0: float, rank) -> None:
    model = RobustLowRank(rank, eta0=eta0)
    with pytest.raises(FloatingPointError, match=r"diverged: eta0=.* is too large, give less"):
        model.fit(L + S)
    assert not hasattr(model, "factor_")


def test_steps_that_are_too_short_are_told_how_long_they_must_be() -> None:
    with pytest.warns(
        ConvergenceWarning, match=r"steps add up to 0\.5 and should to .*, raise eta0 \(below 1\)"
    ):
        RobustLowRank(R, eta0=0.01, max_iter=400).fit(L + S)


@pytest.mark.parametrize(
    ("options", "X", "y", "message"),
    [
        ({}, np.where(np.eye(4) > 0, np.inf, 1.0), None, "infinity"),
        ({}, np.full((4, 4), np.nan), None, "no observed entry"),
        ({}, IdentityOperator((4, 4)), None, "y is None: give y with measurements, or a table"),
        ({}, np.ones((3, 4, 4)), None, "y is None"),
        ({"symmetric": True}, np.ones((4, 5)), None, r"X is a table of shape \(4, 5\): symmetric=False"),
        ({"rank": 5}, np.ones((4, 9)), None, "rank is 5: at most 4"),
        ({}, np.ones((4, 2)), np.ones(5), "inconsistent numbers of samples"),
        ({"validation_fraction": 0.01}, np.ones((4, 9)), None, "one part is empty"),
    ],
)
def test_bad_tables(options, X, y, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RobustLowRank(**options).fit(X, y)


def test_weights_of_zero_everywhere_are_refused() -> None:
    A = np.random.default_rng(0).normal(size=(20, 3, 3))
    with pytest.raises(ValueError, match="must contain at least one non-zero number"):
        RobustLowRank(1).fit(A, np.ones(20), sample_weight=np.zeros(20))


def measured(weights=None, symmetric: bool = False) -> Measured:
    y = torch.as_tensor(L).flatten()
    return Measured(IdentityOperator((N, D)), y, weights, symmetric)


def test_columns_are_kept_above_one_percent_and_above_what_noise_gives() -> None:
    q = [
        torch.linalg.qr(torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(n))).Q
        for n in (N, D)
    ]
    for noise, sigma, kept in (
        (0.0, [1.0, 0.5, 0.0101, 0.0099], 3),
        (0.001, [1.0, 0.5, 0.02, 0.011], 3),
        (0.1, [9.0, 3.0, 1.5, 1.4], 3),
        (9.0, [1.0, 1.0, 1.0, 1.0], 1),
    ):
        root = torch.tensor(sigma, dtype=torch.float64).sqrt()
        factors = q[0] * root, q[1] * root
        deviation = 0.6745 * noise * torch.where(torch.arange(N * D) % 2 == 0, 1.0, -1.0)
        task = Measured(
            IdentityOperator((N, D)), (factors[0] @ factors[1].mT).flatten() + deviation, None, False
        )
        left, right = task.clear(factors)
        edge = noise * (math.sqrt(N) + math.sqrt(D))
        assert max(sum(s > max(edge, 0.01 * sigma[0]) for s in sigma), 1) == kept == left.shape[1]
        torch.testing.assert_close(left @ right.mT, (q[0] * root.square())[:, :kept] @ q[1][:, :kept].mT)
        torch.testing.assert_close(left.mT @ left, right.mT @ right)


def test_held_out_and_kept_measurements_are_all_of_them_once() -> None:
    task = measured(weights=torch.arange(1.0, N * D + 1, dtype=torch.float64))
    train, held = task.split(0.2, np.random.RandomState(0))
    assert (len(held.y), len(train.y)) == (round(0.2 * N * D), N * D - round(0.2 * N * D))
    both = torch.cat([train.weights, held.weights]).sort().values
    torch.testing.assert_close(both, task.weights)
    assert bool((train.weights.diff() > 0).all())
    for part in (train, held):
        torch.testing.assert_close(part.y, task.y[part.weights.long() - 1])
    torch.testing.assert_close(task.shares().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_the_best_factors_on_what_is_held_out_are_kept_until_patience_ends() -> None:
    estimator = RobustLowRank(patience=2)
    held = measured().part(torch.arange(7))
    watch = HoldOut(estimator, 4.0, held, 0)
    good = torch.linalg.svd(torch.as_tensor(L), full_matrices=False)
    left, right = good.U[:, :R] * good.S[:R], good.Vh[:R].mT
    ended = [watch(t, 0.0, factor * left, right) for t, factor in enumerate((0.0, 0.5, 1.0, 0.9, 0.8, 0.7))]
    assert ended == [False, False, False, False, False, True]
    torch.testing.assert_close(watch.best[0], left)
