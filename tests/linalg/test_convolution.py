"""Convolutions by Fourier transform against sums over lags."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eckart.linalg.convolution import (
    causal_convolution,
    circular_convolution,
    circular_correlation,
    fft_length,
    two_sided_convolution,
)


def lagged(u: Tensor, past: Tensor, future: Tensor | None = None) -> Tensor:
    """The definition, one pair of time steps after the other."""
    y, length = torch.zeros_like(u), u.shape[-1]
    for t in range(length):
        for s in range(length):
            if s <= t:
                y[..., t] += past[..., t - s] * u[..., s]
            elif future is not None:
                y[..., t] += future[..., s - t - 1] * u[..., s]
    return y


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 17])
def test_convolutions_equal_their_definition(length: int) -> None:
    torch.manual_seed(0)
    u, past, future = numbers(2, 4, 3, length), numbers(3, length), numbers(3, length)
    torch.testing.assert_close(causal_convolution(u, past), lagged(u, past), rtol=0, atol=1e-13)
    torch.testing.assert_close(
        two_sided_convolution(u, past, future), lagged(u, past, future), rtol=0, atol=1e-13
    )


def test_the_last_sample_does_not_reach_the_first() -> None:
    """A transform shorter than 2L − 1 would wrap it around."""
    u, k = torch.zeros(1, 1, 64, dtype=torch.float64), torch.ones(1, 64, dtype=torch.float64)
    u[..., -1] = 1e6
    y = causal_convolution(u, k)
    assert y[..., :-1].abs().max() < 1e-8 and abs(y[..., -1].item() - 1e6) < 1e-8


def test_a_batch_in_several_parts_equals_one_transform_with_its_gradients() -> None:
    torch.manual_seed(0)
    u, k, g = (
        numbers(5, 1000, 64).mT.requires_grad_(),
        numbers(64, 1000).requires_grad_(),
        numbers(5, 64, 1000),
    )
    y = causal_convolution(u, k)
    whole = torch.fft.irfft(torch.fft.rfft(u, 2000) * torch.fft.rfft(k, 2000), 2000)[..., :1000]
    torch.testing.assert_close(y, whole, rtol=0, atol=1e-11)
    for ours, plain in zip(
        torch.autograd.grad(y, (u, k), g), torch.autograd.grad(whole, (u, k), g), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)
    assert y.stride() == u.stride()


def test_an_empty_batch_has_an_empty_result() -> None:
    u, k = torch.zeros(0, 3, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    y = causal_convolution(u, k)
    y.sum().backward()
    assert y.shape == (0, 3, 8) and k.grad is not None and not k.grad.any()


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_gradients(check) -> None:
    torch.manual_seed(0)
    u, past, future = (x.requires_grad_() for x in (numbers(3, 2, 6), numbers(2, 6), numbers(2, 6)))
    assert check(causal_convolution, (u, past))
    assert check(two_sided_convolution, (u, past, future))


def test_the_operators_keep_torch_s_rules() -> None:
    u, k, g = numbers(3, 2, 7).requires_grad_(), numbers(2, 7).requires_grad_(), numbers(3, 2, 7)
    torch.library.opcheck(circular_convolution, (u, k, 14))
    torch.library.opcheck(circular_correlation, (g, u, k, 14))


def test_fft_length_is_the_next_even_number_without_other_primes() -> None:
    def rest(n: int) -> int:
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n

    smooth = [n for n in range(2, 5000, 2) if rest(n) == 1]
    for least in range(1, 4500):
        assert fft_length(least) == next(n for n in smooth if n >= least)
