"""Rows in 8 bits: the error is half a step of 255, a constant row is exact."""

import torch

from eckart.linalg.affine8 import dequantize8, quantize8


def test_error_is_at_most_half_a_step_and_the_ends_are_exact() -> None:
    x = torch.randn(5, 400, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 5)[:, None]
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    packed = quantize8(x, low, high)
    assert packed.codes.dtype == torch.uint8
    assert int(packed.codes.min()) == 0 and int(packed.codes.max()) == 255
    error = (dequantize8(packed) - x).abs() / (high - low)
    assert float(error.max()) <= 1 / 510 + 1e-6
    assert float(error.max()) > 0.9 / 510


def test_a_row_of_equal_values_comes_back_exactly() -> None:
    x = torch.tensor([[0.3, 0.3, 0.3], [0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]])
    packed = quantize8(x, x.amin(1, keepdim=True), x.amax(1, keepdim=True))
    torch.testing.assert_close(dequantize8(packed)[:2], x[:2], rtol=0, atol=0)
