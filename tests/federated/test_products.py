"""The running sum of products: stacked or dense, it is the same sum, and it does not grow."""

from __future__ import annotations

import gc

import pytest
import torch
from federated_cases import clients

from eckart.federated import LayerSum, ProductSum, aggregate

OUT, INNER = 9, 14


def filled(count: int, stack: bool = False) -> tuple[ProductSum, torch.Tensor]:
    total, dense = ProductSum(OUT, INNER, stack), torch.zeros(OUT, INNER, dtype=torch.float64)
    for k, (a, b) in enumerate(clients(ranks=(2,) * count)):
        total.add(b, a, k + 0.5)
        dense += (k + 0.5) * b @ a
    return total, dense


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("stack", [False, True])
def test_everything_asked_of_the_sum(count: int, stack: bool) -> None:
    total, dense = filled(count, stack)
    x, y = torch.rand(INNER, 3, dtype=torch.float64), torch.rand(OUT, 2, dtype=torch.float64)
    b, a = total.stacks()
    u, s, vh = total.svd()
    for actual, expected in (
        (total.dense(), dense),
        (b @ a, dense),
        (u * s @ vh, dense),
        (total.times(x), dense @ x),
        (total.transposed_times(y), dense.mT @ y),
        (total.column_norms(), dense.norm(dim=0)),
        (total.scaled(-2.0).dense(), -2 * dense),
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)
    assert total.norm() == pytest.approx(float(dense.norm()), rel=1e-12)
    assert total.stacked_rank == (2 * count if stack or 2 * count * (OUT + INNER) < OUT * INNER else 0)


@pytest.mark.parametrize(("one", "two"), [(1, 1), (1, 7), (7, 1), (7, 7)])
def test_merging(one: int, two: int) -> None:
    (total, dense), (other, more) = filled(one), filled(two)
    total.merge(other, 0.5)
    torch.testing.assert_close(total.dense(), dense + 0.5 * more, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other.dense(), more, rtol=1e-12, atol=1e-12)


def test_an_empty_sum_is_zero() -> None:
    empty = ProductSum(3, 5)
    assert empty.norm() == 0 == empty.numbers
    assert not empty.dense().any()


def test_numbers_held_do_not_grow_with_the_clients() -> None:
    sums, held = LayerSum(), []
    for a, b in clients(ranks=(2,) * 40):
        sums.add(a, b, 1.0)
        held.append(sums.update().numbers)
    assert max(held) == held[-1] == OUT * INNER


def test_nothing_of_the_size_of_the_weight_is_formed() -> None:
    """20,000 × 20,000 would be 3.2 GB; every tensor alive or made stays under 50 MB."""
    out = inner = 20_000
    generator = torch.Generator().manual_seed(0)
    factors = [
        (torch.randn(8, inner, generator=generator), torch.randn(out, 8, generator=generator))
        for _ in range(3)
    ]
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple | list) else (result,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.untyped_storage().nbytes())
            return result

    gc.collect()
    with Watch():
        for strategy in ("lora-fair", "flexlora", "fedex-lora", "flora-stacking"):
            aggregate(strategy, factors, [1.0, 2.0, 3.0])
    assert 0 < largest < 10e6
