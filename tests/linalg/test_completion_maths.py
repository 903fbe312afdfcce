"""Row regressions: weights, ridges, zeros everywhere, boundaries between solvers, and both half-steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eckart.linalg import completion
from eckart.linalg.completion import (
    Compressed,
    RowSolver,
    absolute_loss,
    alternate,
    clip_incoherent,
    entries,
    inner_residual,
    ridge_solutions,
)
from eckart.linalg.regression import conjugate_gradient, normal_equations, preconditioned, sketch_start

DOUBLE = torch.float64
M, N, K = 5, 9, 2


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


COUNTS = torch.tensor([4, 0, 9, 1, 6])
POINTER = torch.cat([torch.zeros(1, dtype=torch.long), COUNTS.cumsum(0)])
COLUMNS = torch.cat([torch.randperm(N, generator=torch.Generator().manual_seed(int(c)))[:c] for c in COUNTS])
DATA = Compressed(POINTER, COLUMNS, numbers(20), torch.rand(20, dtype=DOUBLE) + 0.1)
V, RIDGE = numbers(N, K, seed=1), torch.tensor([0.3, 1.0, 0.1, 2.0, 0.7], dtype=DOUBLE)


def reference(everywhere: bool, weighted: bool = True) -> Tensor:
    rows = []
    for i in range(M):
        part = slice(int(POINTER[i]), int(POINTER[i + 1]))
        A, b = V[COLUMNS[part]], DATA.value[part]
        w = DATA.weight[part] if weighted else torch.ones_like(b)
        gram = A.mT @ (w[:, None] * A) + RIDGE[i] * torch.eye(K, dtype=DOUBLE)
        if everywhere:
            gram = gram + V.mT @ V
        rows.append(torch.linalg.solve(gram, A.mT @ (w * b)))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["auto", "cholesky", "cg", "sketch"])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_row_is_its_weighted_ridge_regression(kind, everywhere: bool, weighted: bool) -> None:
    data = DATA if weighted else Compressed(POINTER, COLUMNS, DATA.value)
    solver = RowSolver(kind, steps=8, sketch_factor=2, everywhere=everywhere)
    found, wanted = solver(data, V, RIDGE), reference(everywhere, weighted)
    torch.testing.assert_close(found, wanted)
    assert not found[1].any()
    assert inner_residual(data, wanted, V, RIDGE, everywhere) < 1e-12
    assert inner_residual(data, 2 * wanted, V, RIDGE, everywhere) > 0.1


def test_the_residual_is_relative_to_that_of_zero_factors() -> None:
    assert inner_residual(DATA, torch.zeros(M, K, dtype=DOUBLE), V, RIDGE) == pytest.approx(1.0)


def test_small_batches_give_the_same(monkeypatch) -> None:
    monkeypatch.setattr(completion, "BATCH", 1)
    monkeypatch.setattr(completion, "GATHERED", 1)
    monkeypatch.setattr(completion, "PRODUCTS", 1)
    torch.testing.assert_close(RowSolver("cholesky")(DATA, V, RIDGE), reference(False))
    found = entries(numbers(M, K), V, torch.tensor([0, 3, 4]), torch.tensor([8, 0, 2]))
    torch.testing.assert_close(found, (numbers(M, K) @ V.mT)[[0, 3, 4], [8, 0, 2]])


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_ridge_that_rounding_swallows_gives_the_least_solution(everywhere: bool) -> None:
    """Rows of one observation and two unknowns; with every column's zero beside it they are well posed."""
    tiny = torch.full((M,), 1e-40, dtype=DOUBLE)
    found = RowSolver("cholesky", everywhere=everywhere)(DATA, V, tiny)
    for i in range(M):
        part = slice(int(POINTER[i]), int(POINTER[i + 1]))
        A, b = (
            DATA.weight[part].sqrt()[:, None] * torch.cat([V[COLUMNS[part]], DATA.value[part, None]], 1)
        ).split(K, 1)
        if everywhere:
            A, b = torch.cat([A, V]), torch.cat([b, torch.zeros(N, 1, dtype=DOUBLE)])
        torch.testing.assert_close(found[i], torch.linalg.pinv(A) @ b[:, 0], rtol=1e-6, atol=1e-9)


def test_solutions_by_sums_name_the_rows_that_are_singular() -> None:
    x, singular = ridge_solutions(DATA, V, torch.full((M,), 1e-40, dtype=DOUBLE), V[:0])
    assert singular.tolist() == [
        False,
        False,
        False,
        True,
        False,
    ]  # one observation; none is no equation at all
    assert not x[3].any() and not x[1].any() and x[[0, 2, 4]].all()


def test_which_solver_auto_takes() -> None:
    asked: list[str] = []

    def solved(k: int, q: int) -> str:
        A, b, ridge = numbers(1, q, k), numbers(1, q), torch.ones(1, dtype=DOUBLE)
        exact = normal_equations(A, b, ridge)
        found = RowSolver("auto", steps=1)._solve(A, b, ridge, None)
        asked.append("cholesky" if torch.equal(found, exact) else "cg")
        return asked[-1]

    assert [solved(64, 300), solved(65, 4 * 65), solved(65, 4 * 65 + 1)] == ["cholesky", "cholesky", "cg"]


@pytest.mark.parametrize("orthonormal", [False, True])
@pytest.mark.parametrize("kind", ["cholesky", "cg"])
def test_the_two_half_steps_use_their_own_observations(orthonormal: bool, kind) -> None:
    """V is solved from the first and U from the second, each from the other's last value."""
    full = numbers(M, N, seed=4)
    half = [torch.rand(M, N, generator=torch.Generator().manual_seed(s)) < 0.8 for s in (1, 2)]

    def compressed(mask: Tensor, table: Tensor) -> Compressed:
        rows, cols = mask.nonzero(as_tuple=True)
        pointer = torch.cat([torch.zeros(1, dtype=torch.long), mask.sum(1).cumsum(0)])
        return Compressed(pointer, cols, table[rows, cols])

    start, ridge = numbers(M, K, seed=5), 0.0 if orthonormal else 0.2
    solver = RowSolver(kind, steps=20)
    rows, cols = torch.full((M,), ridge, dtype=DOUBLE), torch.full((N,), ridge, dtype=DOUBLE)
    end = alternate(
        lambda t: (compressed(half[0].mT, full.mT), compressed(half[1], full)),
        torch.linalg.qr(start).Q if orthonormal else start,
        solver,
        lambda U, V: float((U @ V.mT - full).norm()),
        rows,
        cols,
        orthonormal=orthonormal,
        max_iter=3,
        tol=0.0,
    )
    U = start
    for _ in range(3):
        W = torch.stack(
            [
                torch.linalg.solve(U[m].mT @ U[m] + ridge * torch.eye(K, dtype=DOUBLE), U[m].mT @ full[m, j])
                for j, m in enumerate(half[0].mT)
            ]
        )
        U = torch.stack(
            [
                torch.linalg.solve(W[m].mT @ W[m] + ridge * torch.eye(K, dtype=DOUBLE), W[m].mT @ full[i, m])
                for i, m in enumerate(half[1])
            ]
        )
    torch.testing.assert_close(end.U @ end.V.mT, U @ W.mT, rtol=1e-6, atol=1e-8)
    assert len(end.rmse) == 3 and end.rmse[-1] == pytest.approx(float((U @ W.mT - full).norm()))
    if orthonormal:
        torch.testing.assert_close(end.V.mT @ end.V, torch.eye(K, dtype=DOUBLE))


def test_an_alternation_ends_when_the_rmse_changes_by_a_share_of_itself() -> None:
    course = iter([10.0, 8.0, 7.2, 7.2, 7.2])
    end = alternate(
        lambda t: (DATA, DATA),
        numbers(M, K),
        lambda data, other, ridge, start: other,
        lambda U, V: next(course),
        RIDGE,
        torch.ones(N, dtype=DOUBLE),
        orthonormal=False,
        max_iter=9,
        tol=0.1,
    )
    assert end.rmse == [10.0, 8.0, 7.2] and end.converged


@pytest.mark.parametrize("weighted", [False, True])
def test_the_absolute_loss_is_that_of_each_row_by_weight(weighted: bool) -> None:
    data = DATA if weighted else Compressed(POINTER, COLUMNS, DATA.value)
    U = numbers(M, K, seed=2)
    found = absolute_loss(data, U, V)
    for i in range(M):
        part = slice(int(POINTER[i]), int(POINTER[i + 1]))
        size = (DATA.value[part] - V[COLUMNS[part]] @ U[i]).abs()
        torch.testing.assert_close(found[i], (size * DATA.weight[part] if weighted else size).sum())


def test_clipping_is_at_twice_the_incoherent_length() -> None:
    U = torch.zeros(8, 2, dtype=DOUBLE)
    U[0, 0], U[1, 0], U[2, 1] = 1.0, 1.0 + 1e-9, -1.1
    clipped = clip_incoherent(U, 1.0)  # 2 · 1 · √(2/8) = 1
    assert clipped[0, 0] == 1.0 and clipped[1, 0] == 0 and clipped[2, 1] == 0


@pytest.mark.parametrize("factor", [3, 8])
def test_sketched_iterations_are_those_of_their_formulas(factor: int) -> None:
    k, q = 4, 60
    s, A, b, ridge = factor * k, numbers(1, q, k), numbers(1, q, seed=1), torch.tensor([0.5], dtype=DOUBLE)
    S = numbers(s, q, seed=2) / s**0.5
    x0, R = sketch_start(S @ A, b @ S.mT, ridge)
    gram = (S @ A[0]).mT @ (S @ A[0]) + 0.5 * torch.eye(k, dtype=DOUBLE)
    torch.testing.assert_close(R[0].mT @ R[0], gram)
    torch.testing.assert_close(x0[0], torch.linalg.solve(gram, (S @ A[0]).mT @ (S @ b[0])))
    rho = (k / s) ** 0.5
    inverse = torch.linalg.inv(gram)
    for kind, tau, mu in (
        ("unit", 1.0, 0.0),
        ("damped", (1 - rho**2) ** 2 / (1 + rho**2), 0.0),
        ("heavy_ball", (1 - rho**2) ** 2, rho**2),
    ):
        x = before = x0[0]
        for _ in range(4):
            slope = A[0].mT @ (b[0] - A[0] @ x) - 0.5 * x
            x, before = x + tau * inverse @ slope + mu * (x - before), x
        torch.testing.assert_close(preconditioned(A, b, ridge, x0, R, s, 4, kind)[-1][0], x)


def test_conjugate_gradients_end_at_the_solution_after_as_many_steps_as_unknowns() -> None:
    A, b, ridge = numbers(3, 30, 4), numbers(3, 30, seed=1), torch.tensor([0.0, 0.5, 2.0], dtype=DOUBLE)
    exact = normal_equations(A, b, ridge)
    course = conjugate_gradient(A, b, ridge, torch.zeros(3, 4, dtype=DOUBLE), 4)
    torch.testing.assert_close(course[-1], exact)
    assert course.shape == (5, 3, 4) and (course[3] - exact).norm() > 1e-6
    one = (A.mT @ b.unsqueeze(-1)).squeeze(-1)
    curved = (A.mT @ (A @ one.unsqueeze(-1))).squeeze(-1) + ridge[:, None] * one
    torch.testing.assert_close(course[1], one * (one.square().sum(1) / (one * curved).sum(1))[:, None])
