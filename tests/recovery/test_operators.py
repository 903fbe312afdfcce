"""Operators are what they stand for, written out as dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from eckart.linalg.operators import OuterSum, dense, frobenius, spectral_norm
from eckart.recovery import DenseOperator, EntryOperator, IdentityOperator, RankOneOperator

D1, D2, M, K = 5, 7, 9, 2
RNG = np.random.default_rng(0)
LEFT, RIGHT = RNG.normal(size=(M, D1)), RNG.normal(size=(M, D2))
ROWS, COLS = RNG.integers(0, D1, M), RNG.integers(0, D2, M)
UNITS = np.zeros((M, D1, D2))
UNITS[np.arange(M), ROWS, COLS] = 1
SPARSE = sp.random_array((M, D1), density=0.5, random_state=RNG).tocsr()
CASES = {
    "rank-one": (RankOneOperator(LEFT, RIGHT), np.einsum("mi,mj->mij", LEFT, RIGHT)),
    "sparse": (RankOneOperator(SPARSE, RIGHT), np.einsum("mi,mj->mij", SPARSE.toarray(), RIGHT)),
    "entries": (EntryOperator(ROWS, COLS, (D1, D2)), UNITS),
    "identity": (IdentityOperator((D1, D2)), np.eye(D1 * D2).reshape(-1, D1, D2)),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@each
def test_forward_and_adjoint_equal_the_dense_operator(case) -> None:
    operator, A = case
    reference = DenseOperator(A)
    assert (operator.m, operator.shape_in) == (reference.m, reference.shape_in)
    U, V, r = (torch.as_tensor(RNG.normal(size=size)) for size in ((D1, K), (D2, K), operator.m))
    torch.testing.assert_close(operator.forward(U, V), reference.forward(U, V), rtol=1e-12, atol=1e-12)
    mine, full = operator.adjoint(r), reference.adjoint(r)
    torch.testing.assert_close(mine @ V, full @ V, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mine.mT @ U, full.mT @ U, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dense(mine), full, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(frobenius(mine, False), full.norm(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(spectral_norm(mine), torch.linalg.matrix_norm(full, 2), rtol=1e-2, atol=0)


@each
def test_a_subset_measures_less(case) -> None:
    operator, A = case
    chosen = torch.tensor([3, 0])
    U, V = (torch.as_tensor(RNG.normal(size=size)) for size in ((D1, K), (D2, K)))
    torch.testing.assert_close(operator.subset(chosen).forward(U, V), DenseOperator(A[[3, 0]]).forward(U, V))


def test_nothing_square_is_formed_by_products() -> None:
    assert isinstance(CASES["rank-one"][0].adjoint(torch.ones(M)), OuterSum)
    assert CASES["entries"][0].adjoint(torch.ones(M)).is_sparse


def test_symmetric_norms() -> None:
    square = RankOneOperator(LEFT, LEFT[::-1].copy())
    D = square.adjoint(torch.linspace(-1, 2, M, dtype=torch.float64))
    full = (dense(D) + dense(D).mT) / 2
    torch.testing.assert_close(frobenius(D, True), full.norm())
    torch.testing.assert_close(
        spectral_norm(D, True, 200), torch.linalg.matrix_norm(full, 2), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DenseOperator(np.ones((3, 4))),
            r"A is float64 of shape \(3, 4\): give measurement matrices",
        ),
        (lambda: DenseOperator(np.full((1, 2, 2), np.inf)), "A contains NaN or infinity"),
        (lambda: RankOneOperator(np.ones(3)), "a is float64 of shape"),
        (lambda: RankOneOperator(np.ones((3, 2)), np.ones((4, 2))), "a has 3 rows and b 4"),
        (
            lambda: EntryOperator([0, 5], [0, 1], (5, 3)),
            r"rows holds indices from 0 to 5: they must lie in \[0, 5\)",
        ),
        (lambda: EntryOperator([0, 1], [0, -1], (5, 3)), "cols holds indices from -1 to 0"),
        (lambda: EntryOperator([0], [0, 1], (5, 3)), "give two equal vectors"),
    ],
)
def test_bad_operators(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
