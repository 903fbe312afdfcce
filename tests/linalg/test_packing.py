from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.linalg.packing import pack_absmax, unpack_absmax

# Steps below the smallest normal number have fewer digits.
NUMBERS = st.floats(-100, 100, width=32).map(lambda value: value if abs(value) > 1e-30 else 0.0)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(values=st.lists(NUMBERS, min_size=1, max_size=30), bits=st.sampled_from([4, 8]))
def test_round_trip_is_within_half_a_step(values: list[float], bits: int) -> None:
    original = torch.tensor(values)
    codes, step = pack_absmax(original, bits)
    assert codes.numel() == -(-len(values) * bits // 8)
    again = unpack_absmax(codes, step, len(values), bits)
    assert (again - original).abs().max() <= step * 0.5001 + 1e-30
    torch.testing.assert_close(pack_absmax(again, bits)[0], codes)


@pytest.mark.parametrize(("bits", "expected"), [(8, 0.007), (4, 0.13)])
def test_error_on_normal_numbers(bits: int, expected: float) -> None:
    """512 normal coefficients lose about 0.7 % at 8 bits and 13 % at 4, on the average over draws."""
    generator, errors = torch.Generator().manual_seed(0), []
    for _ in range(50):
        values = torch.randn(512, generator=generator)
        again = unpack_absmax(*pack_absmax(values, bits), 512, bits)
        errors.append((again - values).norm() / values.norm())
    assert abs(torch.stack(errors).mean() / expected - 1) < 0.1
