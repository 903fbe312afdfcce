"""The piecewise-linear kernel, its threshold and its gradients against plain loops and finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from eckart.linalg.kernel import multiplier, order_statistics, sparse_piecewise_kernel, threshold

COEFF = [0.1, -0.1]
HOW = ["square", "soft", "hard"]


def piecewise_kernel(outer: Tensor, inner: Tensor, coeff: list[float], norm: float = 2.0) -> Tensor:
    """The kernel with nothing set to zero."""
    return sparse_piecewise_kernel(outer, inner, coeff, 0.0, norm=norm)


def plain(outer: Tensor, inner: Tensor, coeff: list[float], norm: float) -> Tensor:
    """The equation as it stands, for autograd."""
    differences = outer[:, :, None] - inner[:, None]
    return torch.einsum(
        "p,pij->ij",
        torch.tensor(coeff, dtype=outer.dtype),
        torch.linalg.vector_norm(differences, norm, dim=-1),
    )


def factors(m: int = 7, n: int = 5, q: int = 3, pieces: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(pieces, rows, q, dtype=torch.float64, generator=generator) for rows in (m, n))


@pytest.mark.parametrize(
    ("coeff", "norm"), [(COEFF, 2.0), ([1.0], 1.0), ([0.1, -0.1, 0.3], 3.0), (COEFF, math.inf)]
)
def test_kernel_is_the_sum_of_signed_distances(coeff: list[float], norm: float) -> None:
    outer, inner = factors(pieces=len(coeff))
    kernel = piecewise_kernel(outer, inner, coeff, norm)
    for i, j in itertools.product(range(7), range(5)):
        distances = [torch.linalg.vector_norm(o[i] - e[j], norm) for o, e in zip(outer, inner, strict=True)]
        expected = sum(c * d for c, d in zip(coeff, distances, strict=True))
        torch.testing.assert_close(kernel[i, j], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sparsity", [0.001, 0.1, 0.5, 0.75, 0.9, 0.999])
def test_threshold_is_the_quantile_of_torch(sparsity: float) -> None:
    sizes = torch.rand(23, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert threshold(sizes, sparsity, "square") == torch.quantile(sizes, sparsity)
    ordered = sizes.flatten().sort().values
    assert threshold(sizes, sparsity, "soft") == ordered[math.ceil(sparsity * 391) - 1]


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0, 2.0, 5.0], [0.0, 0.0, 0.0], [3.0, 3.0, 1.0, 1.0]])
def test_threshold_of_equal_sizes(values: list[float]) -> None:
    sizes = torch.tensor([values], dtype=torch.float64)
    for sparsity in (0.1, 1 / 3, 0.5, 0.8):
        assert threshold(sizes, sparsity, "square") == torch.quantile(sizes, sparsity)


def test_threshold_beyond_what_quantile_takes() -> None:
    n = 2**24 + 2
    sizes = torch.arange(n, dtype=torch.float32).flip(0).remainder(1000.0).view(2, -1)
    with pytest.raises(RuntimeError):
        torch.quantile(sizes, 0.5)
    assert threshold(sizes, 0.5, "square") == sizes.flatten().sort().values[n // 2 - 1 : n // 2 + 1].mean()


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_how_many_entries_are_left(sparsity: float) -> None:
    outer, inner = factors(40, 24)
    n = 40 * 24
    count = {
        how: int(sparse_piecewise_kernel(outer, inner, COEFF, sparsity, how).count_nonzero()) for how in HOW
    }
    assert count["square"] == count["hard"] == n - 1 - math.floor(sparsity * (n - 1))
    assert count["soft"] == n - math.ceil(sparsity * n)


def test_what_becomes_of_the_entries() -> None:
    outer, inner = factors(40, 24)
    kernel = piecewise_kernel(outer, inner, COEFF)
    square, soft, hard = (sparse_piecewise_kernel(outer, inner, COEFF, 0.8, how) for how in HOW)
    kept = hard != 0
    assert torch.equal(hard[kept], kernel[kept])
    assert torch.equal(square != 0, kept)
    assert torch.equal(square[kept], (kernel * kernel.abs())[kept])
    bound = kernel.abs().flatten().sort().values[math.ceil(0.8 * 960) - 1]
    torch.testing.assert_close(soft, kernel * (kernel.abs() - bound).clamp_min(0))
    assert torch.equal(sparse_piecewise_kernel(outer, inner, COEFF, 0.0), kernel)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("norm", [2.0, 1.5])
@pytest.mark.parametrize("sparsity", [0.0, 0.6])
def test_gradients_are_those_of_the_function_at_a_fixed_threshold(
    how: str, norm: float, sparsity: float
) -> None:
    """`detach=False` is the derivative of K m(|K|) with t held still; `detach=True` that of K with m held still."""
    outer, inner = factors()
    kernel = piecewise_kernel(outer, inner, COEFF, norm)
    bound = threshold(kernel.abs(), sparsity, how) if sparsity else None
    held = multiplier(kernel.abs(), bound, how) if sparsity else torch.ones_like(kernel)

    def surrogate(outer: Tensor, inner: Tensor, detach: bool) -> Tensor:
        k = piecewise_kernel(outer, inner, COEFF, norm)
        return k * (held if detach or not sparsity else multiplier(k.abs(), bound, how))

    weights = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    if sparsity:
        weights[kernel.abs() == bound] = 0  # the entry that is the threshold itself sits on the kink
    for detach in (True, False):
        leaves = [outer.clone().requires_grad_(), inner.clone().requires_grad_()]
        delta = sparse_piecewise_kernel(*leaves, COEFF, sparsity, how, detach=detach, norm=norm)
        (delta * weights).sum().backward()
        for which, leaf in enumerate(leaves):
            for index in range(leaf.numel()):
                step, values = 1e-6, []
                for sign in (1, -1):
                    moved = [outer.clone(), inner.clone()]
                    moved[which].view(-1)[index] += sign * step
                    values.append((surrogate(*moved, detach) * weights).sum())
                expected = (values[0] - values[1]) / (2 * step)
                torch.testing.assert_close(leaf.grad.view(-1)[index], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("q", "norm"), [(1, 2.0), (1, 3.0), (2, 2.0), (5, 2.0), (3, 1.0), (3, 3.0)])
def test_gradients_are_those_of_autograd(q: int, norm: float, how: str, detach: bool) -> None:
    """Over several blocks of rows, and an uneven last one."""
    outer, inner = factors(70, 2**15 // 30, q)
    weights = torch.randn(70, 2**15 // 30, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found, wanted = ([f.clone().requires_grad_() for f in (outer, inner)] for _ in range(2))
    delta = sparse_piecewise_kernel(*found, COEFF, 0.7, how, detach=detach, norm=norm)
    kernel = plain(*wanted, COEFF, norm)
    bound = (
        torch.quantile(kernel.abs(), 0.7).detach()
        if how != "soft"
        else threshold(kernel.abs(), 0.7, how).detach()
    )
    factor = multiplier(kernel.abs(), bound, how)
    expected = kernel * (factor.detach() if detach else factor)
    torch.testing.assert_close(delta, expected, rtol=1e-12, atol=1e-14)
    for pair in zip(
        torch.autograd.grad((delta * weights).sum(), found),
        torch.autograd.grad((expected * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0, 2.0, 5.0], [1.0], [math.nan, 1.0, 0.0]])
def test_order_statistics(values: list[float]) -> None:
    x = torch.tensor(values)
    ordered = x.sort().values
    for rank in range(len(values)):
        expected = torch.stack([ordered[rank], ordered[min(rank + 1, len(values) - 1)]])
        torch.testing.assert_close(order_statistics(x, rank), expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(x.nan_to_num(), torch.tensor(values).nan_to_num())


def test_square_has_twice_the_slope_when_the_multiplier_is_differentiated() -> None:
    grads = []
    for detach in (True, False):
        leaves = [f.requires_grad_() for f in factors()]
        sparse_piecewise_kernel(*leaves, COEFF, 0.6, detach=detach).sum().backward()
        grads.append(leaves[0].grad)
    torch.testing.assert_close(grads[1], 2 * grads[0], rtol=1e-12, atol=1e-14)


def test_coinciding_rows_have_a_gradient() -> None:
    outer, inner = factors()
    outer[:, 2] = inner[:, 1]
    inner[:, 3] = inner[:, 1]
    leaves = [outer.requires_grad_(), inner.requires_grad_()]
    sparse_piecewise_kernel(*leaves, COEFF, 0.0).sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    expected = sum(
        torch.nn.functional.normalize(outer[0, 2] - inner[0, j], dim=0) * COEFF[0]
        for j in range(5)
        if j not in (1, 3)
    )
    torch.testing.assert_close(leaves[0].grad[0, 2], expected.detach(), rtol=1e-10, atol=1e-12)


def test_nothing_of_the_size_of_the_matrix_is_kept() -> None:
    outer, inner = (f.requires_grad_() for f in factors(60, 50, 3))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        sparse_piecewise_kernel(outer, inner, COEFF, 0.9)
    assert sum(kept) == outer.numel() + inner.numel() + 1
