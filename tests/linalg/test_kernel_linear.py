"""A linear layer with a sparsified kernel in its weight, against the same written with autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eckart.linalg.kernel import Sparsify, multiplier, sparse_piecewise_kernel, threshold
from eckart.linalg.kernel_linear import KernelForm, kernel_linear

DOUBLE = torch.float64


def plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    outer: Tensor,
    inner: Tensor,
    form: KernelForm,
    scaling: float,
    softmax: tuple[Tensor, Tensor, Tensor] | None,
) -> Tensor:
    """The definition."""
    sparsity = form.sparsity if softmax is None else 0.0
    kernel = sparse_piecewise_kernel(
        outer, inner, form.coeff, sparsity, form.how, detach=form.detach, norm=form.norm
    )
    if softmax is not None:
        alpha, beta, gamma = softmax
        kernel = kernel + alpha * (kernel / gamma).softmax(0) + beta
        size = kernel.abs()
        factor = multiplier(size, threshold(size.detach(), form.sparsity, form.how), form.how)
        kernel = kernel * (factor.detach() if form.detach else factor)
    y = x @ (weight + scaling * kernel).t()
    return y if bias is None else y + bias


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("how", ["square", "soft", "hard"])
@pytest.mark.parametrize(("q", "norm"), [(1, 2.0), (2, 2.0), (3, 1.5)])
def test_outputs_and_gradients_are_those_of_the_definition(
    q: int, norm: float, how: Sparsify, detach: bool, softmax: bool
) -> None:
    """More rows than one product of the backward pass takes."""
    if softmax and norm != 2:
        pytest.skip("with the softmax the norm is 2")
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=DOUBLE, generator=generator)

    weight, x, bias, outer, inner = draw(300, 7), draw(5, 7), draw(300), draw(2, 300, q), draw(2, 7, q)
    numbers = tuple(torch.tensor([n], dtype=DOUBLE, requires_grad=True) for n in (1.3, 0.2, 0.7))
    trained = [t.requires_grad_() for t in (x, bias, outer, inner)] + list(numbers if softmax else ())
    for sparsity in (0.0, 0.6):
        form = KernelForm((0.1, -0.3), sparsity, how, detach, norm)
        for own_bias in (bias, None):
            given = x, weight, own_bias, outer, inner, form, 1.7, numbers if softmax else None
            found, expected = kernel_linear(*given), plain(*given)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
            used = [t for t in trained if t is not bias or own_bias is not None]
            slopes = [torch.autograd.grad(y.sin().sum(), used) for y in (found, expected)]
            for slope, wanted in zip(*slopes, strict=True):
                torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-10)


def test_an_input_without_gradient_and_equal_rows_are_taken() -> None:
    outer, inner = torch.ones(2, 4, 1, requires_grad=True), torch.ones(2, 3, 1, requires_grad=True)
    form = KernelForm((0.1, -0.1), 0.5, "square")
    y = kernel_linear(torch.ones(2, 3), torch.zeros(4, 3), None, outer, inner, form)
    assert not y.any()
    y.sum().backward()
    assert not outer.grad.any()
    assert not inner.grad.any()
