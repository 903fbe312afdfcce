"""Trion: the momentum keeps what the subspace lost, the update is of rank r and nearly orthogonal."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from eckart.linalg.dct import dct_matrix
from eckart.optim import Trion
from eckart.optim.trion import newton_schulz

DOUBLE = torch.float64


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 8)])
@pytest.mark.parametrize("transform", ["fft", "matmul"])
def test_momentum_and_update_follow_from_the_chosen_columns(shape: tuple[int, int], transform: Any) -> None:
    p = numbers(*shape, seed=9).requires_grad_()
    optimizer = Trion([p], lr=0.1, rank=3, momentum=0.9, weight_decay=0.0, transform=transform, norm=2)
    q, right = dct_matrix(8), shape[0] >= shape[1]
    momentum = torch.zeros(shape, dtype=DOUBLE)
    for t in range(4):
        p.grad, before = numbers(*shape, seed=t), p.detach().clone()
        b = momentum + p.grad
        optimizer.step()
        state = optimizer.state[p]
        coordinates = b @ q if right else q.mT @ b
        energy = coordinates.square().sum(0 if right else 1)
        assert state["indices"].tolist() == energy.topk(3).indices.sort().values.tolist()
        chosen = q[:, state["indices"].long()]
        low = b @ chosen @ chosen.mT if right else chosen @ chosen.mT @ b
        momentum = b - 0.1 * low
        torch.testing.assert_close(state["momentum_buffer"], momentum, rtol=0, atol=1e-12)
        update = (before - p.detach()) / 0.1 / math.sqrt(max(1, shape[0] / shape[1]))
        values = torch.linalg.svdvals(update)
        assert float(values[3:].max()) < 1e-10
        assert float(values[2]) > 0.6 and float(values[0]) < 1.3
        outside = update - (update @ chosen @ chosen.mT if right else chosen @ chosen.mT @ update)
        assert float(outside.abs().max()) < 1e-12


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_newton_schulz_is_the_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    b = numbers(*shape)
    u, s, vh = torch.linalg.svd(b, full_matrices=False)
    values = s / (s.norm() + 1e-7)
    for _ in range(2):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(newton_schulz(b, 2), u @ values.diag() @ vh, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [5, 7])
def test_newton_schulz_of_values_over_four_decades_in_float32(steps: int) -> None:
    u, _, vh = torch.linalg.svd(numbers(60, 12), full_matrices=False)
    start = torch.logspace(0, -4, 12, dtype=DOUBLE)
    values = start / (start.norm() + 1e-7)
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    wanted, b = u @ values.diag() @ vh, u @ start.diag() @ vh
    torch.testing.assert_close(newton_schulz(b, steps), wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(newton_schulz(b.float(), steps), wanted.float(), rtol=0, atol=1e-3)


def test_newton_schulz_of_a_matrix_of_lower_rank_stays_bounded_in_float32() -> None:
    b = (numbers(60, 3) @ numbers(3, 24, seed=1)).float()
    for steps in (5, 30):
        assert torch.linalg.matrix_norm(newton_schulz(b, steps), 2) < 1.3
    assert not newton_schulz(torch.zeros(6, 4), 5).any()


@pytest.mark.parametrize(
    ("scale", "wide", "tall"),
    [
        ("kj", 1.0, 2.0),
        ("none", 1.0, 1.0),
        ("kimi", 0.2 * math.sqrt(8), 0.2 * math.sqrt(8)),
        ("dion", 0.5, 2.0),
    ],
)
def test_scales(scale: Any, wide: float, tall: float) -> None:
    for shape, factor in (((2, 8), wide), ((8, 2), tall)):
        moved = {}
        for kind in ("none", scale):
            p = torch.zeros(shape, dtype=DOUBLE, requires_grad=True)
            p.grad = numbers(*shape)
            Trion([p], lr=0.1, rank=1, scale=kind).step()
            moved[kind] = p.detach().clone()
        torch.testing.assert_close(moved[scale], factor * moved["none"])


def test_the_rest_is_adamws_at_its_share_of_the_rate() -> None:
    ours, theirs = (numbers(5).requires_grad_() for _ in range(2))
    optimizer = Trion([ours], lr=0.1, rank=3, adamw_scale=0.2, weight_decay=0.5)
    adamw = torch.optim.AdamW([theirs], lr=0.02, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.5)
    for t in range(3):
        ours.grad, theirs.grad = numbers(5, seed=t), numbers(5, seed=t)
        optimizer.step()
        adamw.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_weight_decay_is_that_of_the_rate() -> None:
    p = torch.ones(4, 4, dtype=DOUBLE, requires_grad=True)
    p.grad = torch.zeros(4, 4, dtype=DOUBLE)
    Trion([p], lr=0.1, rank=1, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), torch.full((4, 4), 0.95, dtype=DOUBLE))
