"""The kernel with a softmax, built by rows, is the plain composition of its parts, and so are its gradients."""

from __future__ import annotations

import pytest
import torch

from eckart.linalg import kernel as plain
from eckart.linalg import softmax_kernel
from eckart.linalg.softmax_kernel import sparse_softmax_kernel

DOUBLE = torch.float64


def inputs(gamma: float = 0.7, rows: int = 9, columns: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    factors = [torch.randn(2, size, 3, dtype=DOUBLE, generator=generator) for size in (rows, columns)]
    numbers = [torch.tensor([value], dtype=DOUBLE) for value in (1.3, -0.02, gamma)]
    return [tensor.requires_grad_() for tensor in (*factors, *numbers)]


def composed(outer, inner, alpha, beta, gamma, coeff, sparsity, how, detach):
    distance = plain.sparse_piecewise_kernel(outer, inner, coeff, 0.0)
    whole = distance + alpha * (distance / gamma).softmax(0) + beta
    size = whole.abs()
    factor = plain.multiplier(size, plain.threshold(size.detach(), sparsity, how), how)
    return whole * (factor.detach() if detach else factor)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows at a time: sums go over blocks."""
    blocks = lambda shape, device: (slice(i, i + 2) for i in range(0, shape[0], 2))  # noqa: E731
    monkeypatch.setattr(softmax_kernel, "_row_blocks", blocks)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("how", ["square", "soft", "hard"])
@pytest.mark.parametrize(("sparsity", "gamma"), [(0.4, 0.7), (0.0, -0.3)])
def test_values_and_gradients(how: str, detach: bool, sparsity: float, gamma: float) -> None:
    coeff = [0.4, -0.7]
    given = inputs(gamma)
    slope = torch.randn(9, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    found = sparse_softmax_kernel(*given, coeff, sparsity, how, detach=detach)
    expected = composed(*given, coeff, sparsity, how, detach)
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(found, given, slope)
    theirs = torch.autograd.grad(expected, given, slope)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_large_exponents_do_not_overflow() -> None:
    given = [tensor.detach().float() for tensor in inputs(1e-4)]
    found = sparse_softmax_kernel(*given, [1.0, -1.0], 0.0, "hard")
    torch.testing.assert_close(found, composed(*given, [1.0, -1.0], 0.0, "hard", True))
    assert found.isfinite().all()


def test_nothing_of_its_size_is_kept() -> None:
    kept: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sparse_softmax_kernel(*inputs(), [0.1, -0.1], 0.5)
    assert kept and max(torch.Size(shape).numel() for shape in kept) < 9 * 5 * 2
    assert (9, 5) not in kept
