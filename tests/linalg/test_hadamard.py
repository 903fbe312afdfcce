"""The Walsh–Hadamard transform and Fastfood against explicit matrices."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import hadamard as matrix

from eckart.errors import InputError
from eckart.linalg.hadamard import fastfood, hadamard

DOUBLE = torch.float64


@pytest.mark.parametrize("size", [1, 2, 4, 8, 32, 64, 128, 512, 8192])
def test_against_the_matrix(size: int) -> None:
    x = torch.randn(size, dtype=DOUBLE, generator=torch.Generator().manual_seed(size))
    before = x.clone()
    torch.testing.assert_close(hadamard(x), torch.from_numpy(matrix(size)).double() @ x)
    torch.testing.assert_close(hadamard(hadamard(x)), size * x)
    assert torch.equal(x, before)


def test_known_numbers() -> None:
    assert hadamard(torch.tensor([1.0, 0, 1, 0, 0, 1, 1, 0])).tolist() == [4, 2, 0, -2, 0, 2, 0, 2]


def test_half_precision_is_transformed_in_single() -> None:
    x = torch.ones(4096, dtype=torch.bfloat16, requires_grad=True)
    y = hadamard(x)
    assert y.dtype == torch.float32 and y[0] == 4096
    y[0].backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(0,), (3,), (6,), (2, 2)])
def test_what_is_no_power_of_two(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="power of two"):
        hadamard(torch.ones(shape))


def parts(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    return (
        signs,
        torch.randperm(size, generator=generator),
        torch.randn(size, generator=generator, dtype=DOUBLE),
    )


@pytest.mark.parametrize(("size", "d"), [(16, 16), (11, 5), (9, 2)])
def test_fastfood_is_the_product_of_its_matrices(size: int, d: int) -> None:
    signs, order, gauss = parts(16)
    h, turn = torch.from_numpy(matrix(16)).double(), torch.eye(16, dtype=DOUBLE)[order]
    explicit = (h @ gauss.diag() @ turn @ h @ signs.diag())[:size, :d] / (size**0.5 * gauss.norm())
    identity = torch.eye(d, dtype=DOUBLE)
    found = torch.stack([fastfood(column, signs[:d], order, gauss, size) for column in identity], 1)
    torch.testing.assert_close(found, explicit)
    theta = torch.randn(d, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: fastfood(t, signs[:d], order, gauss, size), theta)


def test_fastfood_where_the_inner_transform_repeats() -> None:
    """L beyond the table, θ padded to four numbers: the equation with both transforms of length L."""
    length, d, size = 2**14, 3, 10_001
    signs, order, gauss = parts(length)
    theta = torch.randn(d, dtype=DOUBLE, requires_grad=True)
    whole = theta.detach().clone().requires_grad_()
    padded = torch.nn.functional.pad(signs[:d] * whole, (0, length - d))
    expected = hadamard(gauss * hadamard(padded)[order])[:size] / (size**0.5 * gauss.norm())
    found, cotangent = fastfood(theta, signs[:d], order.int(), gauss, size), torch.randn(size, dtype=DOUBLE)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(y, x, cotangent) for y, x in ((found, theta), (expected, whole)))
    )


def test_autocast_does_not_round_it() -> None:
    x = torch.randn(256, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = hadamard(x)
    assert found.dtype == torch.float32 and torch.equal(found, hadamard(x))
