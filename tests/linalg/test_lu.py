"""LU with pivots that can be stored: against its definition, LAPACK's own, and weights that have no full rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eckart.linalg.lu import ldu, row_order

SHAPES = [(5, 8), (8, 5), (6, 6), (1, 4), (4, 1), (90, 70), (70, 130)]


def matrix(m: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_whole_decomposition(shape: tuple[int, int]) -> None:
    w, k = matrix(*shape), min(shape)
    order = row_order(w)
    assert sorted(order.tolist()) == list(range(shape[0]))
    b, d, a = ldu(w, order[:k])
    torch.testing.assert_close(b * d @ a, w, rtol=0, atol=1e-11)
    lower = b[order]
    assert torch.equal(lower[:k].triu(1), torch.zeros(k, k).double())
    torch.testing.assert_close(lower.diagonal(), torch.ones(k).double(), rtol=0, atol=1e-13)
    assert lower.abs().max() <= 1 + 1e-12
    assert torch.equal(a.diagonal(), torch.ones(k).double())
    assert torch.equal(a[:, :k].tril(-1), torch.zeros(k, k).double())


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_lapack(shape: tuple[int, int]) -> None:
    w, k = matrix(*shape, seed=1), min(shape)
    p, lower, upper = torch.linalg.lu(w)
    order = row_order(w)
    assert torch.equal(order, p.argmax(0))
    b, d, a = ldu(w, order[:k])
    torch.testing.assert_close(b, p @ lower, rtol=0, atol=1e-11)
    torch.testing.assert_close(d[:, None] * a, upper, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("r", [1, 3, 40])
def test_leading_steps_interpolate_r_rows_and_r_columns(r: int) -> None:
    w = matrix(45, 60, seed=2)
    pivots = row_order(w)[:r]
    b, d, a = ldu(w, pivots)
    assert (b.shape, d.shape, a.shape) == ((45, r), (r,), (r, 60))
    left_over = w - b * d @ a
    assert left_over[:, :r].abs().max() < 1e-11
    assert left_over[pivots].abs().max() < 1e-11
    assert torch.linalg.matrix_rank(left_over, atol=1e-9) == 45 - r


def test_other_pivots_are_followed() -> None:
    w = matrix(50, 40, seed=3)
    chosen = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:38]
    assert not torch.equal(chosen, row_order(w)[:38])
    b, d, a = ldu(w, chosen)
    torch.testing.assert_close(w[chosen[0], 0], d[0])
    torch.testing.assert_close((b * d @ a)[chosen], w[chosen], rtol=0, atol=1e-7)
    torch.testing.assert_close((b * d @ a)[:, :38], w[:, :38], rtol=0, atol=1e-7)
    assert torch.equal(b[chosen].triu(1), torch.zeros(38, 38).double())


def _defective() -> dict[str, Tensor]:
    zero_rows, equal, low, zero_columns = (matrix(40, 50, seed=s).float() for s in range(4))
    zero_rows[[3, 7]] = 0
    equal[5:20] = equal[4]
    zero_columns[:, :6] = 0
    low = low[:, :5] @ matrix(5, 50).float()
    return {
        "zero rows": zero_rows,
        "equal rows": equal,
        "rank 5": low,
        "zero columns": zero_columns,
        "zero": torch.zeros(40, 50),
        "tiny": torch.full((40, 50), 1e-30),
    }


@pytest.mark.parametrize("kind", _defective())
def test_is_finite_where_pivots_vanish(kind: str) -> None:
    w = _defective()[kind]
    b, d, a = ldu(w, row_order(w)[:40])
    assert all(bool(t.isfinite().all()) for t in (b, d, a))
    dead = d == 0
    assert dead.any()
    assert not b[:, dead].any()
    assert not a[dead].any()
    assert b.abs().max() <= 1 + 1e-5
    if kind in ("rank 5", "equal rows", "zero rows"):
        torch.testing.assert_close(b * d @ a, w, rtol=0, atol=2e-4)
