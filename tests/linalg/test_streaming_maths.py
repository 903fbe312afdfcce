"""The stream's states: what a block sums up, what is heavy, what is evicted, and Oja's rule row by row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from eckart.linalg.streaming import (
    HeavyRows,
    absorb_oja,
    absorb_rows,
    close_block,
    grown_enough,
    start_blocks,
    start_oja,
)

DOUBLE = torch.float64
D, K = 6, 3


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


X = numbers(40, D)
START = start_blocks(torch.linalg.qr(numbers(D, K, seed=1)).Q)
NONE = HeavyRows(norm=math.inf, n=100)


def test_a_block_without_heavy_rows_is_its_power_step() -> None:
    state = absorb_rows(absorb_rows(START, X[:15], NONE), X[15:], NONE)
    assert state.energy == pytest.approx(float(X.square().sum())) and state.light == pytest.approx(
        state.energy
    )
    assert (state.seen, state.in_block, state.block, len(state.heavy)) == (40, 40, 0, 0)
    torch.testing.assert_close(state.total, X.sum(0))
    closed = close_block(state, NONE)
    W = 100 / 40 * X.mT @ X @ START.Z
    torch.testing.assert_close(closed.image, W)
    torch.testing.assert_close(closed.Z.mT @ closed.Z, torch.eye(K, dtype=DOUBLE))
    assert bool(((closed.Z.mT @ W).diagonal() > 0).all())
    torch.testing.assert_close(closed.rayleigh[0], (START.Z * W).sum(0))
    assert closed.trace == pytest.approx(100 / 40 * float(X.square().sum())) and closed.light == 0.0
    assert (closed.in_block, closed.block, closed.seen) == (0, 1, 40) and not closed.acc.any()
    assert not closed.shift.any()


def test_heavy_rows_are_weighted_by_all_rows_and_light_ones_by_the_block() -> None:
    first = absorb_rows(START, X[:20], NONE)
    closed = close_block(first, NONE)
    bound = float(X[20:].norm(dim=1).sort().values[17])
    rule = HeavyRows(norm=bound, n=100)
    state = absorb_rows(closed, X[20:], rule)
    heavy = X[20:].norm(dim=1) >= bound
    assert state.heavy_row.tolist() == (20 + heavy.nonzero().squeeze(1)).tolist() and int(heavy.sum()) == 3
    again = close_block(state, rule)
    light, apart = X[20:][~heavy], X[20:][heavy]
    torch.testing.assert_close(
        again.image, 100 / 20 * light.mT @ light @ closed.Z + 100 / 40 * apart.mT @ apart @ closed.Z
    )
    assert again.trace == pytest.approx(5 * float(light.square().sum()) + 2.5 * float(apart.square().sum()))


def test_a_centred_stream_takes_the_mean_so_far_from_the_next_block() -> None:
    closed = close_block(absorb_rows(START, X[:20], NONE), NONE, centred=True)
    torch.testing.assert_close(closed.shift, X[:20].mean(0))
    state = absorb_rows(closed, X[20:], NONE)
    kept = X[20:] - X[:20].mean(0)
    torch.testing.assert_close(state.acc, kept.mT @ kept @ closed.Z)
    assert state.light == pytest.approx(float(kept.square().sum()))
    assert state.energy == pytest.approx(float(X[:20].square().sum() + kept.square().sum()))


def test_the_bound_of_a_heavy_row_follows_the_rows_so_far() -> None:
    energy, seen = torch.tensor([8.0], dtype=DOUBLE), torch.tensor([10.0], dtype=DOUBLE)
    assert float(HeavyRows(2.0, n=100).bound(energy, seen, 5)) == pytest.approx(math.sqrt(8 * 10 / (2 * 5)))
    assert float(HeavyRows(2.0).bound(energy, seen, 5)) == pytest.approx(math.sqrt(8 * 2 / (2 * 5)))
    assert float(HeavyRows(norm=3.0).bound(energy, seen, 5)) == 3.0


def test_beyond_the_most_the_smallest_heavy_row_is_light_after_all() -> None:
    rows = torch.diag(torch.tensor([3.0, 5.0, 4.0, 7.0, 6.0, 2.5], dtype=DOUBLE))
    rule = HeavyRows(norm=1.0, most=2, n=12)
    state = absorb_rows(START, rows, rule)
    assert state.heavy_row.tolist() == [3, 4]
    light = rows[[0, 1, 2, 5]]
    torch.testing.assert_close(state.acc, light.mT @ light @ START.Z)
    assert state.light == pytest.approx(9 + 25 + 16 + 6.25)
    exact = absorb_rows(START, rows[:1], HeavyRows(norm=3.0, n=12))
    assert exact.heavy_row.tolist() == [0]


@pytest.mark.parametrize("count", [5, 64, 150])
def test_ojas_rule_in_blocks_is_row_by_row(count: int) -> None:
    rows, rates = 0.3 * numbers(count, D, seed=2), torch.tensor([0.05, 0.4], dtype=DOUBLE)
    z = numbers(D, 1, seed=3)
    state = absorb_oja(start_oja(z, rates), rows)
    for pick, rate in enumerate(rates):
        v, growth = z[:, 0] / z.norm(), 0.0
        for a in rows:
            v = v + rate * a * (a @ v)
            growth, v = growth + math.log(v.norm()), v / v.norm()
        torch.testing.assert_close(state.V[pick], v)
        assert float(state.log_growth[pick]) == pytest.approx(growth, rel=1e-9)
    assert state.energy == pytest.approx(float(rows.square().sum())) and state.seen == count
    torch.testing.assert_close(state.largest, rows[rows.norm(dim=1).argmax()])


def test_several_vectors_share_a_rate_and_stay_orthonormal() -> None:
    rows, Z = 0.3 * numbers(30, D, seed=2), numbers(D, 2, seed=3)
    state = absorb_oja(start_oja(Z, torch.tensor([0.4], dtype=DOUBLE)), rows)
    V = torch.linalg.qr(Z).Q
    for a in rows:
        V = V + 0.4 * torch.outer(a, a @ V)
    q = torch.linalg.qr(V).Q
    torch.testing.assert_close(state.V.mT @ state.V, q @ q.mT)
    torch.testing.assert_close(state.log_growth.sum(), torch.linalg.svdvals(V).log().sum())


def test_the_smallest_rate_that_grew_enough() -> None:
    state = start_oja(numbers(D, 1), torch.tensor([4.0, 1.0, 2.0], dtype=DOUBLE))
    growth = math.log(D) * torch.tensor([3.0, 0.9, 1.0], dtype=DOUBLE)
    state = type(state)(state.V, state.rates, growth, state.largest)
    assert grown_enough(state) == 2 and grown_enough(state, 0.9) == 1
    assert grown_enough(state, 2.0) == 0 and grown_enough(state, 3.1) == -1


def test_before_the_first_row_there_is_nothing() -> None:
    assert (START.energy, START.light, START.trace, START.seen, START.in_block, START.block) == (
        0,
        0,
        0,
        0,
        0,
        0,
    )
    assert not START.acc.any() and len(START.heavy) == len(START.rayleigh) == 0
    oja = start_oja(numbers(D, 1), torch.tensor([0.5, 0.1], dtype=DOUBLE))
    assert (oja.energy, oja.seen) == (0, 0) and not oja.log_growth.any() and not oja.largest.any()
    torch.testing.assert_close(oja.V.norm(dim=1), torch.ones(2, dtype=DOUBLE))
    torch.testing.assert_close(oja.rates, torch.tensor([0.5, 0.1], dtype=DOUBLE))
