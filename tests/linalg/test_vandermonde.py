"""Products with powers against the matrix of all powers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from eckart.linalg.vandermonde import power_moments, power_sums


def powers(log_a: Tensor, length: int) -> Tensor:
    """The (h, n, L) matrices themselves, by repeated multiplication."""
    a, rows = log_a.exp(), [torch.ones_like(log_a)]
    for _ in range(length - 1):
        rows.append(rows[-1] * a)
    return torch.stack(rows, dim=-1)


def decaying(*shape: int, dtype: torch.dtype = torch.complex128) -> Tensor:
    log_a = torch.complex(-torch.rand(*shape).double(), 3 * torch.randn(*shape).double())
    return (log_a if dtype.is_complex else log_a.real).to(dtype)


@pytest.mark.parametrize("dtype", [torch.complex128, torch.float64])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 100])
def test_both_products_equal_those_with_the_whole_matrix(length: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    log_a, v, u = (
        decaying(3, 4, dtype=dtype),
        torch.randn(2, 3, 4, dtype=dtype),
        torch.randn(2, 3, length).double(),
    )
    matrix = powers(log_a, length)
    sums = torch.einsum("bhn,hnl->bhl", v, matrix)
    moments = torch.einsum("bhl,hnl->bhn", u.to(dtype), matrix)
    torch.testing.assert_close(power_sums(v, log_a, length), sums.real, rtol=0, atol=1e-12)
    torch.testing.assert_close(power_moments(u, log_a), moments, rtol=0, atol=1e-12)


def test_a_negative_number_has_real_powers_through_its_complex_logarithm() -> None:
    a = torch.tensor([[-0.9, 0.5, -1.0]], dtype=torch.float64)
    log_a, v = (a + 0j).log(), torch.tensor([[1.0, 2.0, -3.0]], dtype=torch.float64)
    expected = (v.unsqueeze(-1) * a.unsqueeze(-1) ** torch.arange(50)).sum(-2)
    torch.testing.assert_close(power_sums(v, log_a, 50), expected, rtol=0, atol=1e-13)


def test_float32_keeps_the_phase_of_the_last_of_many_powers() -> None:
    length, log_a = 16384, torch.tensor([[-1e-5 + 20j, -1e-5 + 3j]], dtype=torch.complex128)
    v = torch.tensor([[1 + 1j, 2 - 1j]], dtype=torch.complex128)
    exact = power_sums(v, log_a, length)
    torch.testing.assert_close(
        power_sums(v.to(torch.complex64), log_a, length).double(), exact, rtol=0, atol=3e-6
    )
    last = (v * (log_a * (length - 1)).exp()).sum().real
    torch.testing.assert_close(exact[0, -1], last, rtol=0, atol=1e-10)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("dtype", [torch.complex128, torch.float64])
def test_gradients(check, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    log_a = decaying(2, 3, dtype=dtype).requires_grad_()
    v = torch.randn(2, 3, dtype=dtype, requires_grad=True)
    u = torch.randn(2, 2, 7, dtype=torch.float64, requires_grad=True)
    assert check(lambda v, log_a: power_sums(v, log_a, 7), (v, log_a))
    assert check(power_moments, (u, log_a))


def test_autocast_leaves_the_precision_alone() -> None:
    torch.manual_seed(0)
    log_a, v, u = decaying(2, 4), torch.randn(2, 4, dtype=torch.complex64), torch.randn(2, 90)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums, moments = power_sums(v, log_a, 90), power_moments(u, log_a)
    assert torch.equal(sums, power_sums(v, log_a, 90)) and torch.equal(moments, power_moments(u, log_a))


def test_gradient_of_ten_thousand_powers_saves_only_their_roots() -> None:
    """Everything kept for the backward pass is of the order √L, not L."""
    kept: list[int] = []
    log_a, v = decaying(2, 8).requires_grad_(), torch.randn(2, 8, dtype=torch.complex64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        power_sums(v, log_a, 10_000)
    assert max(kept) <= 2 * log_a.numel() * math.isqrt(10_000)
