"""Sub-gradient and gradient descent on factors: one step written out, scales, boundaries, and ends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from eckart.linalg.factored_descent import Switch, core_svd, factored_descent, gradient, refactor
from eckart.linalg.operators import DenseOperator, IdentityOperator
from eckart.linalg.subgradient import (
    StepSize,
    direction,
    loss_and_slope,
    signed_mean,
    spectral_factors,
    subgradient_descent,
    weighted_quantile,
)

DOUBLE = torch.float64


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


A, Y = numbers(30, 5, 7), numbers(30, seed=1)
U, V, W = (
    numbers(5, 3, seed=2),
    numbers(7, 3, seed=3),
    torch.rand(30, dtype=DOUBLE, generator=torch.Generator().manual_seed(4)),
)


def residual(left: Tensor, right: Tensor) -> Tensor:
    return (A * (left @ right.mT)).sum((1, 2)) - Y


@pytest.mark.parametrize("loss", ["l1", "l2", "huber"])
def test_one_step_of_the_pair_is_that_of_autograd(loss: str) -> None:
    """U moves against the gradient in U and V against that in V, both from the old point."""
    left, right = U.clone().requires_grad_(), V.clone().requires_grad_()
    value, _ = loss_and_slope(residual(left, right), loss, 0.3)
    (W / W.sum() @ value).backward()
    end = subgradient_descent(
        DenseOperator(A),
        Y,
        U,
        V,
        weights=W,
        loss=loss,
        delta=0.3,
        step=StepSize("constant", 0.01),
        max_iter=1,
    )
    torch.testing.assert_close(end.left, U - 2 * 0.01 * left.grad)
    torch.testing.assert_close(end.right, V - 2 * 0.01 * right.grad)
    assert end.losses[0] == pytest.approx(float(W @ value / W.sum())) and len(end.losses) == 2


def test_losses_and_slopes() -> None:
    rho = torch.tensor([-2.0, -0.5, 0.0, 0.5, 1.0, 3.0], dtype=DOUBLE)
    value, slope = loss_and_slope(rho, "huber", 1.0)
    assert value.tolist() == [1.5, 0.125, 0.0, 0.125, 0.5, 2.5] and slope.tolist() == [-1, -0.5, 0, 0.5, 1, 1]
    assert loss_and_slope(rho, "l2")[0].tolist() == [2.0, 0.125, 0.0, 0.125, 0.5, 4.5]
    assert loss_and_slope(rho, "l1")[1].tolist() == [-1, -1, 0, 1, 1, 1]


@pytest.mark.parametrize("symmetric", [False, True])
def test_step_sizes(symmetric: bool) -> None:
    rho, weights = torch.tensor([1.0, -2.0, 4.0], dtype=DOUBLE), torch.tensor([1.0, 1.0, 2.0], dtype=DOUBLE)
    D = numbers(6, 6)
    full = (D + D.mT) / 2 if symmetric else D

    def size(rule: str, t: int = 0, w: Tensor | None = None, **options) -> float:
        return StepSize(rule, 0.5, 0.9, **options)(t, rho, D, w, symmetric)

    assert size("constant", 7) == 0.5
    assert size("geometric", 3) == pytest.approx(0.5 * 0.9**3)
    assert size("residual") == pytest.approx(0.5 * 7 / 3) and size("residual", w=weights) == pytest.approx(
        0.5 * 11 / 4
    )
    assert size("quantile") == 1.0 and size("quantile", quantile=1.0) == 2.0
    frobenius = float(torch.linalg.matrix_norm(full))
    assert size("normalized_geometric", 2, norm="fro") == pytest.approx(0.5 * 0.81 / frobenius)
    spectral = float(torch.linalg.matrix_norm(full, 2))
    assert size("normalized_geometric", 2) == pytest.approx(0.5 * 0.81 / spectral, rel=0.02)
    assert StepSize("normalized_geometric")(0, rho, torch.zeros(3, 3, dtype=DOUBLE)) == 0.0


def test_a_descent_ends_at_its_tolerance_and_not_before() -> None:
    target = (U @ V.mT).flatten()
    operator = IdentityOperator((5, 7))
    end = subgradient_descent(
        operator, target, 1.1 * U, V, step=StepSize("constant", 1e-3), tol=1e-1, max_iter=9
    )
    assert end.converged and len(end.steps) == 1 and len(end.losses) == 2
    end = subgradient_descent(
        operator, target, 1.1 * U, V, step=StepSize("constant", 1e-3), tol=1e-9, max_iter=9
    )
    assert not end.converged and len(end.steps) == 9 and len(end.losses) == 10


@pytest.mark.parametrize("symmetric", [False, True])
def test_descents_end_on_what_is_no_number(symmetric: bool) -> None:
    operator, y = IdentityOperator((5, 5)), torch.full((25,), torch.nan, dtype=DOUBLE)
    start = U, None if symmetric else U
    assert len(subgradient_descent(operator, y, *start, max_iter=1000).losses) == 1
    for careful in (True, False):
        end = factored_descent(operator, y, *start, eta=1.0, careful=careful, max_iter=1000)
        assert len(end.losses) == 1 and not end.converged
    blown = factored_descent(
        operator, torch.full((25,), 1e200, dtype=DOUBLE), *start, eta=1.0, careful=True, max_iter=1000
    )
    assert len(blown.losses) == 1


def test_spectral_starts() -> None:
    C = numbers(6, 6)
    C = C + C.mT
    values, vectors = torch.linalg.eigh(C)
    left, right = spectral_factors(C, 2)
    leading = vectors[:, -2:] * values[-2:].clamp_min(0)
    torch.testing.assert_close(left @ left.mT, leading @ vectors[:, -2:].mT)
    assert left is right
    M = numbers(5, 8)
    u, s, vh = torch.linalg.svd(M, full_matrices=False)
    left, right = spectral_factors(M, 3, symmetric=False)
    torch.testing.assert_close(left @ right.mT, (u[:, :3] * s[:3]) @ vh[:3])
    torch.testing.assert_close(left.mT @ left, torch.diag(s[:3]))
    torch.testing.assert_close(
        signed_mean(DenseOperator(A), Y, W, symmetric=False), torch.einsum("m,mij->ij", W * Y, A)
    )


def test_directions_of_an_unsymmetric_adjoint() -> None:
    D, X = numbers(5, 5), numbers(5, 2)
    torch.testing.assert_close(direction(D, X, X)[0], (D + D.mT) @ X)
    D = numbers(5, 7)
    left, right = direction(D, U, V, symmetric=False)
    torch.testing.assert_close(left, 2 * D @ V)
    torch.testing.assert_close(right, 2 * D.mT @ U)


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_weighted_quantiles_of_whole_weights_are_those_of_repetitions(q: float) -> None:
    values, times = numbers(9), torch.arange(1, 10)
    repeated = values.repeat_interleave(times)
    assert float(weighted_quantile(values, q, times.double())) == pytest.approx(float(repeated.quantile(q)))
    assert float(weighted_quantile(values, q)) == pytest.approx(float(values.quantile(q)))


def test_gradients_of_both_factors() -> None:
    left, right = U.clone().requires_grad_(), V.clone().requires_grad_()
    (W @ residual(left, right).square() / 2).backward()
    found = gradient(DenseOperator(A), residual(U, V), W, U, V)
    torch.testing.assert_close(found[0], left.grad)
    torch.testing.assert_close(found[1], right.grad)
    square, X = A[:, :, :5], U.clone().requires_grad_()
    rho = (square * (X @ X.mT)).sum((1, 2)) - Y
    (W @ rho.square() / 2).backward()
    torch.testing.assert_close(2 * gradient(DenseOperator(square), rho.detach(), W, U)[0], X.grad)


def test_refactoring_keeps_the_product_and_makes_one_factor_orthogonal() -> None:
    F, G = refactor(U, V, 0.7)
    torch.testing.assert_close(F @ G.mT, U @ V.mT)
    torch.testing.assert_close(F.mT @ F, 0.49 * torch.eye(3, dtype=DOUBLE))
    p, s, qh = core_svd(U, V)
    torch.testing.assert_close((p * s) @ qh, U @ V.mT)
    torch.testing.assert_close(s, torch.linalg.svdvals(U @ V.mT)[:3])
    for error, place in ((0.0, 2), (float((s[1] + s[2]) / 2), 1), (100.0, 0)):
        F, _ = refactor(U, V, None, error)
        wanted = s[s > max(0.01 * s[0], min(error, 0.9 * float(s[0])))][-1]
        torch.testing.assert_close(wanted, s[place])
        torch.testing.assert_close(F.mT @ F, wanted * torch.eye(3, dtype=DOUBLE))


def test_when_a_switch_is_due() -> None:
    assert Switch(0.1).due(5, 0.1, 1.0) and not Switch(0.1).due(5, 0.11, 1.0)
    assert Switch(0.1, at=3).due(3, 9.0, 1.0) and not Switch(0.1, at=3).due(4, 0.0, 1.0)


def test_one_step_of_both_factors_with_momentum() -> None:
    operator = DenseOperator(A)
    first = factored_descent(operator, Y, U, V, weights=W, eta=1e-3, max_iter=1)
    E, H = gradient(operator, residual(U, V), W, U, V)
    torch.testing.assert_close(first.F, U - 1e-3 * E)
    torch.testing.assert_close(first.G, V - 1e-3 * H)
    assert first.losses[0] == pytest.approx(float(W @ residual(U, V).square()) / 2)
    second = factored_descent(operator, Y, U, V, weights=W, eta=1e-3, momentum=0.5, max_iter=2)
    E2, H2 = gradient(operator, residual(first.F, first.G), W, first.F, first.G)
    torch.testing.assert_close(second.F, first.F - 1e-3 * (E2 + 0.5 * E))
    torch.testing.assert_close(second.G, first.G - 1e-3 * (H2 + 0.5 * H))


def test_a_careful_step_is_halved_until_the_loss_does_not_rise() -> None:
    operator = DenseOperator(A)
    careful = factored_descent(operator, Y, U, V, eta=1e3, careful=True, max_iter=6)
    assert all(b <= a * (1 + 1e-9) for a, b in zip(careful.losses, careful.losses[1:], strict=False))
    E, _ = gradient(operator, residual(U, V), torch.full_like(Y, 1 / 30), U, V)
    first = factored_descent(operator, Y, U, V, eta=1e3, careful=True, max_iter=1)
    eta = float((U - first.F).norm() / E.norm())
    assert math.log2(1e3 / eta) == pytest.approx(round(math.log2(1e3 / eta)), abs=1e-9)
    twice = factored_descent(operator, Y, U, V, eta=2 * eta, max_iter=1).losses
    assert twice[1] > twice[0]


def test_the_switch_refactors_by_the_error_that_the_loss_tells() -> None:
    operator, y = IdentityOperator((5, 7)), (U @ V.mT).flatten() + 0.05 * numbers(35, seed=9)
    end = factored_descent(operator, y, U, V, eta=0.0, switch=Switch(at=0), max_iter=0)
    loss, of_zero = float(((U @ V.mT).flatten() - y).square().mean()), float(y.square().mean())
    error = (loss / of_zero) ** 0.5 * float(torch.linalg.matrix_norm(U @ V.mT))
    F, G = refactor(U, V, None, error)
    torch.testing.assert_close(end.F, F)
    torch.testing.assert_close(end.G, G)
    assert end.switch == 0 and end.losses == [pytest.approx(loss / 2)]


def test_a_careful_step_after_refactoring_is_bounded_by_the_factors() -> None:
    operator, y = IdentityOperator((5, 7)), 2 * (U @ V.mT).flatten()
    F, G = refactor(U, V, 0.5)
    wide = max(float(torch.linalg.matrix_norm(x, 2)) ** 2 for x in (F, G))
    end = factored_descent(
        operator, y, U, V, eta=9.0, careful=True, switch=Switch(beta=0.5, at=0), max_iter=1
    )
    E, _ = gradient(operator, (F @ G.mT).flatten() - y, torch.full_like(y, 1 / 35), F, G)
    torch.testing.assert_close(end.F, F - 0.5 / wide * E)


def test_a_step_size_with_nothing_said() -> None:
    assert StepSize() == StepSize("normalized_geometric", 0.3, 0.98, 0.5, "spectral")


def test_a_start_that_fits_exactly_is_the_end_even_without_a_tolerance() -> None:
    """A step of no length is as short as a bound of zero."""
    operator = IdentityOperator((5, 7))
    end = factored_descent(operator, (U @ V.mT).flatten(), U, V, eta=0.1, tol=0.0, max_iter=50)
    assert end.converged and len(end.losses) == 2 and end.losses[-1] == 0
