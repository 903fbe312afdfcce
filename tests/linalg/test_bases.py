from __future__ import annotations

import pytest
import torch

from eckart.linalg.bases import ScaledLinear, ScaledProduct, random_bases

# (A, λ, γ) as RandLoRA broadcasts them: PEFT's order, the paper's, and one A for each basis.
BROADCASTS = {
    "peft": ((3, 1, 7), (3, 4, 1), (1, 4, 7)),
    "paper": ((1, 3, 7), (4, 3, 1), (4, 1, 7)),
    "unshared": ((3, 4, 7), (3, 4, 1), (1, 4, 7)),
}
every_broadcast = pytest.mark.parametrize("shapes", BROADCASTS.values(), ids=BROADCASTS)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@every_broadcast
def test_product_gradients_equal_autograd(shapes) -> None:
    a, lam, gamma = (draw(*shape) for shape in shapes)
    frozen = a.detach()
    torch.testing.assert_close(ScaledProduct.apply(frozen, lam, gamma), frozen * lam * gamma)
    assert torch.autograd.gradcheck(lambda lam, gamma: ScaledProduct.apply(frozen, lam, gamma), (lam, gamma))


@every_broadcast
@pytest.mark.parametrize("transposed", [False, True])
def test_linear_gradients_equal_autograd(shapes, transposed: bool) -> None:
    a, lam, gamma = (draw(*shape) for shape in shapes)
    frozen = a.detach()
    x = draw(2, 5, 7 if transposed else 12)
    scaled = (frozen * lam * gamma).flatten(0, 1)
    expected = x @ (scaled.t() if transposed else scaled)

    def branch(x: torch.Tensor, lam: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        return ScaledLinear.apply(x, frozen, lam, gamma, transposed)

    torch.testing.assert_close(branch(x, lam, gamma), expected)
    assert torch.autograd.gradcheck(branch, (x, lam, gamma))


def test_linear_keeps_its_inputs_alone() -> None:
    a, lam, gamma = (torch.randn(shape) for shape in BROADCASTS["peft"])
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ScaledLinear.apply(torch.randn(2, 7), a, lam.requires_grad_(), gamma.requires_grad_(), True)
    assert sorted(t.numel() for t in kept) == sorted([14, 21, 12, 28])


@pytest.mark.parametrize("law", ["uniform", "normal", "sparse", "very-sparse"])
def test_bases_have_unit_deviation_and_the_law_they_say(law: str) -> None:
    a, b = random_bases(3, law, (8, 1, 256), (300, 32, 8))
    assert (a.shape, b.shape) == ((8, 1, 256), (300, 32, 8))
    for basis in (a.float(), b.float()):
        assert abs(basis.std() - 1) < 0.01
        assert basis.mean().abs() < 0.1
    share = (b != 0).float().mean()
    if law == "sparse":
        assert abs(share - 1 / 3) < 0.01
        assert b.unique().numel() == 3
    elif law == "very-sparse":
        assert abs(share - 1 / 16) < 0.01
    elif law == "uniform":
        assert b.float().abs().max() < 1.75
    else:
        assert b.abs().max() > 3


def test_a_single_number_stays_finite() -> None:
    a, b = random_bases(0, "uniform", (1, 1, 1), (1, 1, 1))
    assert torch.isfinite(a).all() and torch.isfinite(b).all()
