"""The singular vectors are functions of the matrix, whatever basis the library chose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eckart.linalg import svd
from eckart.linalg.spectrum import SVD
from eckart.linalg.svd import (
    CLUSTER_GAP,
    DIGEST_TOLERANCE,
    basis_digest,
    canonical_svd,
    canonicalize,
    leading_svd,
    rank_for_energy,
)


def orthogonal(n: int, k: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, k, dtype=torch.float64, generator=generator)).Q


def svd_with(s: list[float], m: int = 9, n: int = 7) -> SVD:
    return SVD(orthogonal(m, len(s), 1), torch.tensor(s, dtype=torch.float64), orthogonal(n, len(s), 2).mT)


def turned(whole: SVD, first: int, last: int, *, apart: bool = False) -> SVD:
    """The same matrix with the basis of one cluster turned; U and V apart only for the value zero."""
    u, s, vh = (t.clone() for t in whole)
    size = last - first
    q, p = orthogonal(size, size, 3), orthogonal(size, size, 4)
    u[:, first:last] = u[:, first:last] @ q
    vh[first:last] = (p if apart else q).mT @ vh[first:last]
    return SVD(u, s, vh)


def assert_same(one: SVD, other: SVD, atol: float = 1e-12) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (6, 6), (1, 5), (5, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_is_an_svd_in_double_precision(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    u, s, vh = canonical_svd(matrix)
    k = min(shape)
    assert {u.dtype, s.dtype, vh.dtype} == {torch.float64}
    assert (u.shape, s.shape, vh.shape) == ((shape[0], k), (k,), (k, shape[1]))
    torch.testing.assert_close(u * s @ vh, matrix.double(), rtol=0, atol=1e-13)
    torch.testing.assert_close(u.mT @ u, torch.eye(k).double(), rtol=0, atol=1e-13)
    torch.testing.assert_close(vh @ vh.mT, torch.eye(k).double(), rtol=0, atol=1e-13)
    assert bool((s.diff() <= 0).all())


def test_signs_are_forgotten() -> None:
    svd = svd_with([5.0, 3.0, 2.0, 0.5])
    signs = torch.tensor([-1.0, 1.0, -1.0, -1.0]).double()
    assert_same(canonicalize(SVD(svd.U * signs, svd.S, signs[:, None] * svd.Vh)), canonicalize(svd), atol=0)


@pytest.mark.parametrize(
    "s", [[5.0, 3.0, 3.0, 3.0, 1.0], [2.0, 2.0, 2.0, 2.0, 2.0], [5.0, 4.0, 3.0, 1.0, 1.0]]
)
def test_the_basis_of_equal_values_is_forgotten(s: list[float]) -> None:
    svd = svd_with(s)
    first, last = next((i, len(s) - s[::-1].index(v)) for i, v in enumerate(s) if s.count(v) > 1)
    other = turned(svd, first, last)
    assert (other.U - svd.U).abs().max() > 0.1
    assert_same(canonicalize(other), canonicalize(svd))
    u, values, vh = canonicalize(svd)
    torch.testing.assert_close(u * values @ vh, svd.U * svd.S @ svd.Vh, rtol=0, atol=1e-13)


def test_the_two_null_spaces_turn_apart() -> None:
    svd = svd_with([4.0, 1.0, 0.0, 0.0, 0.0])
    assert_same(canonicalize(turned(svd, 2, 5, apart=True)), canonicalize(svd))
    one_zero = svd_with([4.0, 1.0, 0.0])
    flipped = SVD(one_zero.U * torch.tensor([1.0, 1.0, -1.0]), one_zero.S, one_zero.Vh)
    assert_same(canonicalize(flipped), canonicalize(one_zero), atol=0)


def test_near_equal_values_are_one_cluster_and_distinct_ones_are_not() -> None:
    near = svd_with([4.0, 2.0, 2.0 - 4.0 * CLUSTER_GAP / 2, 1.0])
    assert_same(canonicalize(turned(near, 1, 3)), canonicalize(near))
    apart = svd_with([4.0, 2.0, 2.0 - 4.0 * CLUSTER_GAP * 10, 1.0])
    assert (canonicalize(turned(apart, 1, 3)).U - canonicalize(apart).U).abs().max() > 0.01


def test_zero_matrix() -> None:
    u, s, vh = canonical_svd(torch.zeros(4, 3))
    assert not s.any()
    assert all(t.isfinite().all() for t in (u, vh))


def test_digest_sees_a_sign_and_a_turn_and_no_rounding() -> None:
    u, s, vh = canonicalize(svd_with([5.0, 3.0, 2.0, 0.5]))
    digest = basis_digest(u, vh)
    assert digest.dtype == torch.int32
    noisy = basis_digest(u + 1e-9 * torch.randn_like(u), vh + 1e-9 * torch.randn_like(vh))
    assert (noisy - digest).abs().max() <= DIGEST_TOLERANCE
    for column in range(4):
        signs = torch.ones(4, dtype=torch.float64)
        signs[column] = -1
        assert (basis_digest(u * signs, vh) - digest).abs().max() > 100 * DIGEST_TOLERANCE
        assert (basis_digest(u, signs[:, None] * vh) - digest).abs().max() > 100 * DIGEST_TOLERANCE
    other = turned(SVD(u, s, vh), 1, 3)
    assert (basis_digest(other.U, other.Vh) - digest).abs().max() > 100 * DIGEST_TOLERANCE


def test_rank_for_energy_is_the_smallest_that_holds_the_share() -> None:
    s = torch.tensor([3.0, 2.0, 1.0, 1.0])
    assert [rank_for_energy(s, share) for share in (0.1, 9 / 15, 0.61, 13 / 15, 0.9, 1.0)] == [
        1,
        1,
        2,
        2,
        3,
        4,
    ]
    assert [rank_for_energy(s, share, "nuclear") for share in (3 / 7, 0.5, 5 / 7, 0.8, 1.0)] == [
        1,
        2,
        2,
        3,
        4,
    ]
    assert rank_for_energy(torch.zeros(3), 0.5) == 1


def leading(whole: SVD, r: int) -> SVD:
    return SVD(whole.U[:, :r], whole.S[:r], whole.Vh[:r])


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (30, 30)])
def test_leading_triples_are_those_of_the_whole(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the Gram matrix alone, with a cluster of equal values across the cut."""
    values = [1.0, 0.7, 0.5, 0.3, 0.3, 0.3, *(0.2 / (i + 1) for i in range(min(shape) - 6))]
    u, s, vh = svd_with(values, *shape)
    matrix = (u * s) @ vh
    assert_same(leading(canonicalize(svd._by_gram(matrix, 4)), 4), leading(canonical_svd(matrix), 4), 1e-9)
    weight = matrix.float()
    expected = leading(canonical_svd(weight), 3)
    monkeypatch.setattr(svd, "canonical_svd", None)
    assert_same(leading_svd(weight, 3), expected, 1e-9)


def test_leading_triples_that_a_gram_matrix_would_blur_come_from_the_whole() -> None:
    small = torch.diag(torch.tensor([1.0, 1e-4, 1e-5, 1e-6]))
    assert svd._by_gram(small, 1) is not None
    assert svd._by_gram(small, 2) is None
    assert svd._by_gram(torch.zeros(4, 4), 2) is None
    matrix = orthogonal(9, 9, 5)
    for weight, r in ((small, 2), (matrix, 2)):
        expected = leading(canonical_svd(weight), r)
        assert all(
            torch.equal(mine, whole) for mine, whole in zip(leading_svd(weight, r), expected, strict=True)
        )


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (24, 24)])
def test_a_few_small_values_are_decomposed_on_their_own(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All triples, with values that a Gram matrix blurs: a quarter of them and no more, none next to zero."""
    values = [*torch.linspace(1.0, 0.01, 18).tolist(), *(1e-4 * 0.3**i for i in range(6))]
    u, s, vh = svd_with(values, *shape)
    matrix = (u * s) @ vh
    found = canonicalize(svd._by_gram(matrix, 24))
    assert_same(found, canonical_svd(matrix), 1e-7)
    assert (found.U.mT @ found.U - torch.eye(24)).abs().max() < 1e-8
    torch.testing.assert_close(found.U * found.S @ found.Vh, matrix, rtol=0, atol=1e-12)
    assert svd._by_gram((u * torch.where(s > 0.05, s, 1e-4)) @ vh, 24) is None
    assert svd._by_gram((u * torch.where(s > 3e-7, s, 1e-11)) @ vh, 24) is None
    monkeypatch.setattr(svd, "canonical_svd", None)
    assert leading_svd(matrix.float(), 20).Vh.shape == (20, shape[1])
