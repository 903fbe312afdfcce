import pytest
import torch

from eckart.linalg.filters import (
    filter_svd,
    from_matrices,
    multiply_adds,
    nuclear_subgradient,
    projected,
    ranks_above,
    ranks_for_energy,
    to_matrices,
)

WEIGHT = torch.randn(7, 5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SCHEMES = ("NC", "VH", "ND")
SHAPES = {"NC": (1, 7, 30), "VH": (1, 15, 14), "ND": (7, 5, 6)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_round_trip_is_exact_and_the_full_rank_the_identity(scheme):
    matrices = to_matrices(WEIGHT, scheme)
    assert matrices.shape == SHAPES[scheme]
    assert torch.equal(from_matrices(matrices, scheme, WEIGHT.shape), WEIGHT)
    svd = filter_svd(WEIGHT, scheme)
    torch.testing.assert_close(projected(svd, ranks_for_energy(svd.S, 1.0)), matrices)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_projection_keeps_the_energy_with_the_least_rank(scheme):
    svd = filter_svd(WEIGHT, scheme)
    for s, rank in zip(svd.S, ranks_for_energy(svd.S, 0.8).tolist(), strict=True):
        share = s.square().cumsum(0) / s.square().sum()
        assert share[rank - 1] >= 0.8
        assert rank == 1 or share[rank - 2] < 0.8


@pytest.mark.parametrize("scheme", SCHEMES)
def test_subgradient_touches_the_nuclear_norm(scheme):
    svd = filter_svd(WEIGHT, scheme)
    ranks = ranks_for_energy(svd.S, 0.8)
    direction, low = nuclear_subgradient(svd, ranks), projected(svd, ranks)
    norms = torch.linalg.svdvals(low).sum(-1)
    torch.testing.assert_close((direction * low).sum((-1, -2)), norms)
    torch.testing.assert_close(
        torch.linalg.matrix_norm(direction, 2), torch.ones(len(norms), dtype=torch.float64)
    )
    assert torch.linalg.matrix_rank(direction).tolist() == ranks.tolist()


def test_at_least_one_value_stays():
    s = torch.tensor([[3.0, 2.0, 1.0]])
    assert ranks_above(s, 2.0).tolist() == [2]
    assert ranks_above(s, 5.0).tolist() == [1]


def test_multiply_adds_of_the_factors():
    shape = WEIGHT.shape
    assert multiply_adds("NC", shape, 2) == 2 * (30 + 7)
    assert multiply_adds("VH", shape, 2) == 2 * (15 + 14)
    assert multiply_adds("ND", shape, 2) == 2 * (35 + 42)
