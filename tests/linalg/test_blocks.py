"""The layer whose weight is multiplied by blocks: against its definition, and what it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eckart.linalg.blocks import BlockLinear


def given(out: int, width: int, r: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (5, width), (out, width), (out // r, r, r), (out,)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def by_definition(x: Tensor, weight: Tensor, blocks: Tensor, bias: Tensor | None, scaling: float) -> Tensor:
    r = blocks.shape[1]
    changed = weight.clone()
    for j, block in enumerate(blocks):
        for c in range(weight.shape[1] // r):
            rows, columns = slice(j * r, (j + 1) * r), slice(c * r, (c + 1) * r)
            changed[rows, columns] += scaling * (weight[rows, columns] @ block + block)
    y = x @ changed.t()
    return y if bias is None else y + bias


@pytest.mark.parametrize(
    ("out", "width", "r"), [(12, 32, 4), (8, 12, 4), (6, 30, 3), (6, 12, 3), (40, 20, 20)]
)
@pytest.mark.parametrize("biased", [True, False])
def test_output_and_gradients_are_those_of_the_definition(out: int, width: int, r: int, biased: bool) -> None:
    """Blocks that are multiplied several at once, where the width allows it, and one at a time."""
    found = []
    for function in (BlockLinear.apply, by_definition):
        x, weight, blocks, bias = given(out, width, r)
        trained = [x, blocks, *([bias] if biased else [])]
        for tensor in trained:
            tensor.requires_grad_()
        y = function(x, weight, blocks, bias if biased else None, 0.7)
        found.append([y, *torch.autograd.grad(y.sin().sum(), trained)])
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-11)


def test_nothing_of_the_size_of_the_weight_is_kept() -> None:
    x, weight, blocks, bias = given(12, 32, 4)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        BlockLinear.apply(x, weight, blocks.requires_grad_(), bias, 1.0)
    assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in (x, weight, blocks)}


def test_blocks_of_zero_leave_the_bits_of_the_frozen_layer() -> None:
    x, weight, blocks, bias = given(12, 32, 4)
    y = BlockLinear.apply(x, weight, torch.zeros_like(blocks), bias, 1.0)
    assert torch.equal(y, torch.nn.functional.linear(x, weight, bias))
