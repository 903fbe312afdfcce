"""Spectral measures against their definitions, known spectra and plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from eckart.linalg import spectrum


def matrix_with(s: list[float], m: int, n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(m, len(s), dtype=torch.float64, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(n, len(s), dtype=torch.float64, generator=generator)).Q
    return u @ torch.diag(torch.tensor(s, dtype=torch.float64)) @ v.mT


def pareto(alpha: float, count: int, seed: int = 0) -> torch.Tensor:
    """Singular values whose squares have the density λ^−alpha on λ ≥ 1."""
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (1 - uniform).pow(-1 / (alpha - 1)).sqrt().sort(descending=True).values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_singular_values_fall_and_are_at_least_single_precision(dtype: torch.dtype) -> None:
    s = spectrum.singular_values(matrix_with([4.0, 2.0, 1.0], 3, 7).to(dtype))
    assert s.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(s.double(), torch.tensor([4.0, 2.0, 1.0]).double(), rtol=2e-2, atol=0)


def test_truncation_error_is_the_error_of_the_truncated_matrix() -> None:
    s = [5.0, 3.0, 1.0, 0.5]
    m = matrix_with(s, 6, 5)
    u, values, vh = torch.linalg.svd(m, full_matrices=False)
    errors = spectrum.truncation_error(values)
    assert errors.shape == (6,)
    for r in range(6):
        left_over = m - u[:, :r] @ torch.diag(values[:r]) @ vh[:r]
        torch.testing.assert_close(errors[r], left_over.norm() / m.norm(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(spectrum.energy_curve(values), 1 - errors**2)


def test_small_errors_keep_their_digits() -> None:
    errors = spectrum.truncation_error(torch.tensor([1.0, 1e-7]))
    torch.testing.assert_close(errors[1], torch.tensor(1e-7, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("error", "rank"), [(1.0, 0), (0.7, 2), (0.3, 3), (0.2, 4), (0.0, 4)])
def test_rank_within(error: float, rank: int) -> None:
    assert spectrum.rank_within(torch.tensor([1.0, 1.0, 1.0, 0.5]), error) == rank


def test_rank_that_holds_an_energy() -> None:
    s = torch.tensor([3.0, 1.0, 1.0, 1.0])  # energies 9, 10, 11, 12 of 12
    assert [int(spectrum.rank_within(s, math.sqrt(1 - e))) for e in (0.74, 0.76, 0.9, 0.99)] == [1, 2, 3, 4]


def test_ranks_of_known_spectra() -> None:
    flat = torch.ones(8)
    torch.testing.assert_close(spectrum.effective_rank(flat).item(), 8.0)
    torch.testing.assert_close(spectrum.stable_rank(flat).item(), 8.0)
    s = torch.tensor([2.0, 1.0, 1.0, 0.0])
    p = [0.5, 0.25, 0.25]
    torch.testing.assert_close(spectrum.effective_rank(s).item(), math.exp(-sum(x * math.log(x) for x in p)))
    torch.testing.assert_close(spectrum.stable_rank(s).item(), 1.5)


def test_zero_matrix() -> None:
    s = torch.zeros(12)
    assert spectrum.effective_rank(s) == 0
    assert spectrum.stable_rank(s) == 0
    assert spectrum.rank_within(s, 1e-6) == 0
    assert spectrum.heavy_tail_exponent(s).alpha.isnan()


def test_batches_equal_their_members() -> None:
    batch = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0)).double()
    batch[1, 2, :, 5:] = 0  # one member of lower rank
    s = spectrum.singular_values(batch)
    tails = spectrum.heavy_tail_exponent(s)
    for i in range(2):
        for j in range(3):
            one = spectrum.singular_values(batch[i, j])
            torch.testing.assert_close(s[i, j], one, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(spectrum.effective_rank(s)[i, j], spectrum.effective_rank(one))
            torch.testing.assert_close(spectrum.stable_rank(s)[i, j], spectrum.stable_rank(one))
            assert spectrum.rank_within(s, 0.3)[i, j] == spectrum.rank_within(one, 0.3)
            for batched, single in zip(tails, spectrum.heavy_tail_exponent(one), strict=True):
                torch.testing.assert_close(batched[i, j], single, equal_nan=True)


@pytest.mark.parametrize("alpha", [2.0, 3.5, 6.0])
def test_exponent_of_a_pure_power_law_is_recovered(alpha: float) -> None:
    fit = spectrum.heavy_tail_exponent(pareto(alpha, 1500))
    assert abs(fit.alpha.item() - alpha) < 4 * (alpha - 1) / math.sqrt(fit.tail.item())
    assert fit.tail > 100


def test_exponent_ignores_scale_and_finds_the_start_of_the_tail() -> None:
    tail = pareto(2.5, 400)
    bulk = torch.rand(600, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05
    s = torch.cat([tail, bulk]).sort(descending=True).values
    fit = spectrum.heavy_tail_exponent(s)
    assert 0.75 < fit.xmin < 1.6
    assert abs(fit.alpha.item() - 2.5) < 0.35
    torch.testing.assert_close(spectrum.heavy_tail_exponent(s * 17).alpha, fit.alpha)
    torch.testing.assert_close(spectrum.heavy_tail_exponent(s * 17).xmin, fit.xmin * 17**2)


def test_exponent_equals_a_plain_search() -> None:
    s = pareto(3.0, 60, seed=3)
    eigenvalues = sorted((x * x for x in s.tolist()), reverse=False)
    best = (math.inf, math.nan, math.nan)
    for i, xmin in enumerate(eigenvalues[:-1]):
        tail = eigenvalues[i:]
        alpha = 1 + len(tail) / sum(math.log(x / xmin) for x in tail)
        distance = max(abs(1 - (x / xmin) ** (1 - alpha) - k / len(tail)) for k, x in enumerate(tail))
        best = min(best, (distance, alpha, xmin))
    fit = spectrum.heavy_tail_exponent(s)
    assert (fit.distance.item(), fit.alpha.item(), fit.xmin.item()) == pytest.approx(best, rel=1e-9)


def test_exponent_needs_enough_values_and_ignores_the_numerical_null_space() -> None:
    assert spectrum.heavy_tail_exponent(pareto(2.0, 9)).alpha.isnan()
    s = pareto(2.0, 50)
    padded = torch.cat([s, torch.full((30,), 1e-17, dtype=torch.float64)])
    torch.testing.assert_close(
        spectrum.heavy_tail_exponent(padded).alpha, spectrum.heavy_tail_exponent(s).alpha
    )


@pytest.mark.parametrize(("m", "n", "rank"), [(120, 90, 3), (90, 200, 40), (128, 128, 100), (20, 30, 5)])
def test_svd_within_finds_the_numerical_rank(m: int, n: int, rank: int) -> None:
    exact = matrix_with([1 + i for i in range(rank)], m, n)
    noisy = exact + 1e-9 * torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    u, s, vh = spectrum.svd_within(noisy, 1e-6)
    assert s.numel() == rank
    assert (noisy - u @ torch.diag(s) @ vh).norm() <= 1e-6 * noisy.norm()
    torch.testing.assert_close(s, torch.arange(rank, 0, -1).double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(u.mT @ u, torch.eye(rank, dtype=torch.float64))


def test_svd_within_of_a_full_rank_and_of_a_zero_matrix() -> None:
    full = torch.randn(100, 80, generator=torch.Generator().manual_seed(0))
    u, s, vh = spectrum.svd_within(full, 0.1)
    left_over = (full.double() - u @ torch.diag(s) @ vh).norm() / full.double().norm()
    assert left_over <= 0.1
    assert s.numel() == spectrum.rank_within(torch.linalg.svdvals(full), 0.1)
    assert spectrum.svd_within(full, 0.0).S.numel() == 80
    assert spectrum.svd_within(torch.zeros(80, 70), 1e-6).S.numel() == 0
