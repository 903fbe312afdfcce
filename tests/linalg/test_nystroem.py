import pytest
import torch

from eckart.linalg.nystroem import largest, nystroem_refit, refit_error, ridge_leverage

G = torch.Generator().manual_seed(0)
Z = torch.randn(50, 8, dtype=torch.float64, generator=G) @ torch.randn(8, 8, dtype=torch.float64, generator=G)
C = Z.T @ Z / 50
W = torch.randn(5, 8, dtype=torch.float64, generator=G)
KEPT = torch.tensor([1, 4, 6])


def test_leverage_is_its_definition():
    direct = (C @ torch.linalg.inv(C + 0.3 * torch.eye(8, dtype=torch.float64))).diagonal()
    torch.testing.assert_close(ridge_leverage(C, 0.3), direct)


def test_leverage_of_a_singular_matrix():
    low = Z[:3].T @ Z[:3]
    assert ridge_leverage(low, 1e-9).sum() == pytest.approx(3, abs=1e-4)


def test_refit_is_the_least_squares_solution_and_its_error_the_trace():
    refitted = nystroem_refit(W, C, KEPT)
    direct = torch.linalg.lstsq(Z[:, KEPT], Z @ W.T).solution.T
    torch.testing.assert_close(refitted, direct)
    error = (Z @ W.T - Z[:, KEPT] @ refitted.T).square().sum(1).mean()
    schur = C - C[:, KEPT] @ torch.linalg.inv(C[KEPT][:, KEPT]) @ C[KEPT]
    assert refit_error(W, C, KEPT, refitted) == pytest.approx(float(error), rel=1e-8)
    assert float(error) == pytest.approx(float((W @ schur @ W.T).trace()), rel=1e-8)
    assert float(error) < refit_error(W, C, KEPT, W[:, KEPT])


def test_refit_with_fewer_tokens_than_units():
    low = Z[:2].T @ Z[:2]
    refitted = nystroem_refit(W, low, KEPT)
    torch.testing.assert_close(Z[:2][:, KEPT] @ refitted.T, Z[:2] @ W.T)


def test_largest_in_rising_order_first_of_equals():
    assert largest(torch.tensor([1.0, 5.0, 5.0, 0.0, 5.0]), 2).tolist() == [1, 2]
