"""The three rates of the paper, the re-factoring, and what the estimator refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import gaussian, low_rank, psd
from sklearn.exceptions import ConvergenceWarning

from eckart.linalg.factored_descent import core_svd, gradient, imbalance, refactor
from eckart.recovery import DenseOperator, EntryOperator, IdentityOperator, MatrixSensingGD

N, R = 20, 2
TARGET = psd(N, R)
SEEN, ALL = IdentityOperator((N, N)), TARGET.ravel()
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def course(k: int, steps: int, target: np.ndarray = TARGET, **options) -> tuple[MatrixSensingGD, np.ndarray]:
    """A run on the whole matrix, and its squared errors."""
    errors = []
    fitted = MatrixSensingGD(
        k,
        **{"eta": 0.1, "max_iter": steps, "tol": 0.0, "random_state": 0} | options,
        callback=lambda t, i: errors.append(
            float(np.square((i["left"] @ i["right"].mT).numpy() - target).sum())
        ),
    ).fit(IdentityOperator(target.shape), target.ravel())
    return fitted, np.array(errors)


def test_gradient_equals_autograd() -> None:
    A, y = gaussian(low_rank(4, 6, 2), 30)
    operator, y = DenseOperator(A), torch.as_tensor(y)
    shares = torch.full_like(y, 1 / 30)
    generator = torch.Generator().manual_seed(0)
    F, G, X = (
        torch.randn(rows, 3, dtype=torch.float64, generator=generator, requires_grad=True)
        for rows in (4, 6, 4)
    )
    residual = operator.forward(F, G) - y
    (residual.square().mean() / 2).backward()
    for mine, theirs in zip(gradient(operator, residual, shares, F, G), (F.grad, G.grad), strict=True):
        torch.testing.assert_close(mine, theirs)
    square = DenseOperator(A[:, :, :4])
    residual = square.forward(X, X) - y
    (residual.square().mean() / 2).backward()
    torch.testing.assert_close(2 * gradient(square, residual, shares, X)[0], X.grad)


def test_symmetric_form_is_fast_only_with_the_exact_rank() -> None:
    exact, over = (course(k, 4000, parametrization="symmetric", alpha=0.1)[1] for k in (R, R + 3))
    assert exact[1000] < 1e-25
    slope = np.log(over[4000] / over[2000]) / np.log(2)
    assert -2.1 < slope < -1.85
    assert (2 * 0.1 * 4000) ** 2 * over[4000] == pytest.approx(3, rel=0.05)


def test_unequal_start_is_linear_at_a_rate_of_alpha_squared() -> None:
    def slope(alpha: float, first: int, last: int) -> float:
        errors = course(4, last, alpha=alpha, rebalance="none")[1]
        return float(np.log(errors[first] / errors[last]) / (last - first))

    assert slope(0.2, 600, 900) / slope(0.1, 2400, 3600) == pytest.approx(4, abs=0.6)


def test_refactored_once_the_rate_is_free_of_alpha() -> None:
    def steps_after(alpha: float) -> int:
        fitted, errors = course(4, 1500, alpha=alpha, beta=1.0)
        return int(np.argmax(errors < 1e-16)) - fitted.switch_iter_

    steps = [steps_after(alpha) for alpha in (0.2, 0.1, 0.05)]
    assert max(steps) <= 1.08 * min(steps) and min(steps) > 50


@pytest.mark.parametrize("condition", [1, 3, 10])
def test_refactored_it_takes_hardly_more_steps_than_with_the_exact_rank(condition: float) -> None:
    target = low_rank(N, N, R, low=2 / condition) / 2
    over, exact = (course(k, 4000, target, alpha=0.05)[1] for k in (5, R))
    assert 0 < np.argmax(over < 1e-14) < 1.35 * np.argmax(exact < 1e-14)


def test_refactoring_changes_the_factors_and_not_the_product() -> None:
    rng = np.random.default_rng(0)
    F, G = torch.as_tensor(rng.normal(size=(8, 4))), torch.as_tensor(rng.normal(size=(6, 4)))
    left, right = refactor(F, G, 0.8)
    torch.testing.assert_close(left @ right.mT, F @ G.mT)
    torch.testing.assert_close(left.mT @ left, 0.64 * torch.eye(4, dtype=torch.float64))
    _, sigma, _ = core_svd(F, G)
    left, _ = refactor(F, G)
    torch.testing.assert_close(left.mT @ left, sigma[-1] * torch.eye(4, dtype=torch.float64))


def test_the_imbalance_moves_with_the_step() -> None:
    def drift(eta: float, steps: int) -> float:
        factors = []
        MatrixSensingGD(
            4,
            eta=eta,
            alpha=0.3,
            max_iter=steps,
            tol=0.0,
            rebalance="none",
            random_state=0,
            callback=lambda t, i: factors.append((i["left"], i["right"])),
        ).fit(SEEN, ALL)
        return float((imbalance(*factors[-1]) - imbalance(*factors[0])).norm())

    assert drift(0.1, 200) / drift(0.05, 400) == pytest.approx(2, rel=0.25)


def test_equal_factors_are_the_symmetric_form() -> None:
    X = 0.1 * np.random.default_rng(0).normal(size=(N, 4))
    options = {"eta": 0.1, "max_iter": 300, "tol": 0.0}
    one = MatrixSensingGD(4, parametrization="symmetric", init=X, **options).fit(SEEN, ALL)
    two = MatrixSensingGD(4, rebalance="none", init=(X, X), **options).fit(SEEN, ALL)
    np.testing.assert_allclose(one.matrix_, two.matrix_, atol=1e-10)


def test_defaults_recover_an_oblong_matrix() -> None:
    target = 50 * low_rank(9, 13, 2)
    A, y = gaussian(target, 400)
    fitted = MatrixSensingGD(5, random_state=0).fit(A, y)
    assert fitted.converged_ and fitted.switch_iter_ is not None
    assert np.linalg.norm(fitted.matrix_ - target) < 1e-4 * np.linalg.norm(target)
    assert fitted.score(A, y) > 1 - 1e-8
    assert (np.diff(fitted.loss_history_) <= 1e-9 * fitted.loss_history_[:-1]).all()


def test_entries_equal_dense_measurements_of_units() -> None:
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(0, 9, 60), rng.integers(0, 7, 60)
    target = low_rank(9, 7, 1)
    units = np.zeros((60, 9, 7))
    units[np.arange(60), rows, cols] = 1
    y = target[rows, cols]
    fits = [
        MatrixSensingGD(2, eta=1.0, max_iter=50, tol=0.0, random_state=0).fit(form, y)
        for form in (EntryOperator(rows, cols, (9, 7)), units)
    ]
    np.testing.assert_allclose(fits[0].matrix_, fits[1].matrix_, atol=1e-12)


def test_momentum_is_faster() -> None:
    target = low_rank(N, N, R, low=0.1) / 2
    plain, heavy = (course(R, 1500, target, momentum=m, rebalance="none")[1] for m in (0.0, 0.8))
    assert heavy[-1] < 1e-3 * plain[-1]


def test_weights_of_zero_leave_measurements_out() -> None:
    A, y = gaussian(low_rank(6, 6, 1), 120)
    used = np.arange(120) % 4 > 0
    weighted = MatrixSensingGD(2, random_state=0).fit(
        A, np.where(used, y, 99.0), sample_weight=used.astype(float)
    )
    chosen = MatrixSensingGD(2, random_state=0).fit(A[used], y[used])
    np.testing.assert_allclose(weighted.matrix_, chosen.matrix_, atol=1e-8)


def test_a_run_cut_short_says_so() -> None:
    with pytest.warns(ConvergenceWarning, match="still above tol=1e-07 after max_iter=5"):
        MatrixSensingGD(2, max_iter=5, random_state=0).fit(SEEN, ALL)


@pytest.mark.parametrize(
    ("change", "data", "message"),
    [
        ({"n_components": 21}, (SEEN, ALL), "n_components is 21: at most 20"),
        ({"parametrization": "symmetric"}, (IdentityOperator((3, 4)), np.ones(12)), "must be 'asymmetric'"),
        ({}, (SEEN, ALL[:-1]), "inconsistent numbers of samples"),
        ({}, (SEEN, np.full(N * N, np.inf)), "Input y contains infinity"),
        ({"init": (np.ones((N, 2)), np.ones((N, 3)))}, (SEEN, ALL), "init has 2 and 3 columns"),
        ({"init": (np.ones((N, 2)),)}, (SEEN, ALL), "init holds 1 factors"),
        ({"momentum": 1.0}, (SEEN, ALL), r"^momentum is .*: give "),
        ({}, (SEEN, ALL, np.zeros(N * N)), "at least one non-zero number"),
        ({}, (SEEN, ALL, -np.ones(N * N)), "[Nn]egative values"),
    ],
)
def test_bad_input(change, data, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatrixSensingGD(**{"n_components": 2} | change).fit(*data)


def test_a_rate_too_large_is_an_error_and_nothing_is_fitted() -> None:
    model = MatrixSensingGD(3, eta=1e3, alpha=1.0, random_state=0)
    with pytest.raises(FloatingPointError, match=r"eta=1000\.0 is too large"):
        model.fit(SEEN, ALL)
    assert not hasattr(model, "left_")
