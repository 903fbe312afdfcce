"""The sum of column norms: what it is, what bounds it, what moves it, and its gradient."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rotations import rotation
from torch import Tensor

from eckart.metrics import matrix_nuclear_norm, normalised_states, nuclear_norm
from eckart.metrics.matrix_nuclear_norm import BLOCK, fits

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def states(n: int, d: int, *, rank: int | None = None, seed: int = 0) -> Tensor:
    """Hidden states with a falling spectrum."""
    generator = torch.Generator().manual_seed(seed)
    k = min(n, d) if rank is None else rank
    left = torch.randn(n, k, dtype=torch.float64, generator=generator)
    right = torch.randn(k, d, dtype=torch.float64, generator=generator)
    return left * 0.9 ** torch.arange(k) @ right


def signs(n: int, d: int, seed: int = 0) -> Tensor:
    """A rank-one matrix with entries ±1/√d whose columns have mean zero."""
    generator = torch.Generator().manual_seed(seed)
    row = torch.randint(0, 2, (d,), generator=generator).double() * 2 - 1
    column = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(n // 2)
    return torch.outer(column, row) / math.sqrt(d)


@pytest.mark.parametrize(("n", "d"), [(12, 20), (30, 7), (9, 9)])
@pytest.mark.parametrize("D", [None, 1, 3, 6, 500])
def test_topk_is_what_sorting_gives(n: int, d: int, D: int | None) -> None:
    h = states(n, d)
    x = h - h.mean(0)
    z = x / x.norm(dim=1, keepdim=True)
    columns = z.square().sum(0).sqrt().sort(descending=True).values
    wanted = columns[: min(n, d) if D is None else D].sum()
    torch.testing.assert_close(matrix_nuclear_norm(h, D=D, per_token=False), wanted, **CLOSE)
    torch.testing.assert_close(matrix_nuclear_norm(h, D=D), wanted / n, **CLOSE)


def test_more_columns_than_there_are_count_as_all_of_them() -> None:
    h = states(20, 8)
    assert matrix_nuclear_norm(h, D=9) == matrix_nuclear_norm(h, D=8) > matrix_nuclear_norm(h, D=7)


def test_order_shift_and_size_of_the_tokens_do_not_matter() -> None:
    h = states(15, 22)
    wanted = matrix_nuclear_norm(h)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    shift = torch.linspace(-5, 9, 22, dtype=torch.float64)
    for other in (h[order], h + shift, h * 37.5, h * 1e-6):
        torch.testing.assert_close(matrix_nuclear_norm(other), wanted, **CLOSE)


def test_a_rotation_of_the_features_does_matter() -> None:
    """Energy in few coordinates, spread by the rotation over all of them."""
    h = states(64, 32) * 0.7 ** torch.arange(32)
    rotated = h @ rotation(32, 2)
    assert matrix_nuclear_norm(rotated) > 1.2 * matrix_nuclear_norm(h)
    torch.testing.assert_close(nuclear_norm(rotated), nuclear_norm(h), **CLOSE)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(1, 40), st.integers(1, 45), st.integers(0, 10**6))
def test_bounds(n: int, d: int, D: int, seed: int) -> None:
    h = states(n, d, seed=seed)
    used = min(D, d)
    assert matrix_nuclear_norm(h, D=D, per_token=False) <= math.sqrt(used * n) * (1 + 1e-12)
    assert matrix_nuclear_norm(h, D=D) <= math.sqrt(used / n) * (1 + 1e-12)
    assert matrix_nuclear_norm(h) <= math.sqrt(min(n, d) / n) * (1 + 1e-12)
    assert matrix_nuclear_norm(h, D=d) >= nuclear_norm(h) * (1 - 1e-12)


def test_a_rank_one_matrix_of_signs_attains_the_bound() -> None:
    """Far above the nuclear norm, √n: 45.3 against 8."""
    z = signs(64, 32)
    torch.testing.assert_close(normalised_states(z), z, **CLOSE)
    score, exact = (metric(z, per_token=False) for metric in (matrix_nuclear_norm, nuclear_norm))
    torch.testing.assert_close(score, torch.tensor(math.sqrt(64 * 32), dtype=torch.float64), **CLOSE)
    torch.testing.assert_close(exact, torch.tensor(8.0, dtype=torch.float64), **CLOSE)


def test_few_tokens_attain_the_bound_in_as_many_coordinates() -> None:
    z = torch.cat([signs(8, 8), torch.zeros(8, 42, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(matrix_nuclear_norm(z), torch.ones((), dtype=torch.float64), **CLOSE)


def test_it_is_the_nuclear_norm_where_the_columns_are_orthogonal() -> None:
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(30, 12, dtype=torch.float64, generator=generator)).Q
    matrix = basis * torch.linspace(0.1, 8, 12, dtype=torch.float64)
    options = {"normalise": False, "per_token": False}
    torch.testing.assert_close(
        matrix_nuclear_norm(matrix, **options), nuclear_norm(matrix, **options), **CLOSE
    )
    turned = matrix @ rotation(12, 4)
    assert matrix_nuclear_norm(turned, **options) > nuclear_norm(turned, **options) * 1.01


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("D", [None, 4])
def test_gradient_is_that_of_finite_differences(normalise: bool, D: int | None) -> None:
    h = torch.stack([states(6, 9, seed=1), states(6, 9, seed=2)]).requires_grad_()
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])

    def score(x: Tensor) -> Tensor:
        return matrix_nuclear_norm(x, mask, D=D, normalise=normalise)

    assert torch.autograd.gradcheck(score, h, eps=1e-6, atol=1e-6, rtol=1e-6)
    score(h).sum().backward()
    assert h.grad is not None and not h.grad[1, 4:].any() and h.grad[1, :4].any(1).all()


def test_gradient_at_a_column_of_zeros_is_zero() -> None:
    h = states(7, 5).index_fill(1, torch.tensor([2]), 0.0).requires_grad_()
    matrix_nuclear_norm(h, D=5, normalise=False).backward()
    assert h.grad is not None and h.grad.isfinite().all()
    assert not h.grad[:, 2].any() and h.grad[:, [0, 1, 3, 4]].all()


def test_a_text_without_a_score_leaves_the_gradient_of_the_others_alone() -> None:
    h = torch.stack([states(6, 9), torch.ones(6, 9, dtype=torch.float64)]).requires_grad_()
    scores = matrix_nuclear_norm(h)
    assert scores.isnan().tolist() == [False, True]
    scores.nanmean().backward()
    assert h.grad is not None and h.grad[0].all() and not h.grad[1].any()


@pytest.mark.parametrize("D", [0, -1, 2.5, True, "3"])
def test_another_number_of_columns_is_refused(D: object) -> None:
    with pytest.raises(ValueError, match=f"D is {D!r}: give a whole number of at least 1"):
        matrix_nuclear_norm(states(4, 4), D=D)  # type: ignore[arg-type]


@pytest.mark.parametrize("block", [1, 40, 108, 2**17], ids=lambda block: f"blocks of {block}")
@pytest.mark.parametrize("D", [None, 2, 500])
def test_without_a_gradient_blocks_of_rows_give_the_same(
    block: int, D: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of 9 × 12: several in a block, one, a few rows, a single row; NaN in the padding changes nothing."""
    monkeypatch.setattr(sys.modules[matrix_nuclear_norm.__module__], "BLOCK", block)
    h = torch.stack([states(9, 12, seed=seed) + 3 * seed for seed in range(6)]).view(2, 3, 9, 12)
    mask = torch.arange(9) < torch.tensor([[9, 4, 2], [1, 0, 7]]).unsqueeze(-1)
    for real in (None, mask, mask.long()):
        x = h if real is None else torch.where(mask.unsqueeze(-1), h, torch.nan)
        for per_token in (True, False):
            values = matrix_nuclear_norm(x, real, D=D, per_token=per_token)
            wanted = matrix_nuclear_norm(x.clone().requires_grad_(), real, D=D, per_token=per_token)
            torch.testing.assert_close(values, wanted.detach(), equal_nan=True, **CLOSE)
            assert values.isnan().sum() == (0 if real is None else 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_blocks_are_widened_before_the_mean_is_taken(dtype: torch.dtype) -> None:
    h = (states(300, 20) + 40).to(dtype)
    value = matrix_nuclear_norm(h)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, matrix_nuclear_norm(h.double()).float(), rtol=1e-5, atol=0)


def test_what_cannot_be_normalised_is_nan_in_blocks_too() -> None:
    h = torch.stack([states(6, 9)] * 4)
    h[1] = 1.0
    h[2, 3, 4] = torch.inf
    h[3, 2] = h[3, [0, 1, 3, 4, 5]].mean(0)
    assert matrix_nuclear_norm(h).isnan().tolist() == [False, True, True, True]
    assert [bool(matrix_nuclear_norm(text).isnan()) for text in h] == [False, True, True, True]
    assert matrix_nuclear_norm(h[:, :0]).isnan().all() and matrix_nuclear_norm(h[:0]).shape == (0,)


@pytest.mark.parametrize("exponent", range(3, 8))
@pytest.mark.parametrize("n", [1, 2, 7])
def test_what_is_within_rounding_of_the_mean_is_so_with_and_without_a_gradient(exponent: int, n: int) -> None:
    """The widths of the tokens reach from far below the rounding of the mean token to far above it."""
    h = (10.0**exponent + states(n, 5, seed=n) * torch.logspace(-3, 3, 40).view(-1, 1, 1)).float()
    wanted = matrix_nuclear_norm(h.clone().requires_grad_()).detach()
    found = torch.stack([matrix_nuclear_norm(text) for text in h])
    torch.testing.assert_close(found, wanted, equal_nan=True, rtol=1e-5, atol=0)
    torch.testing.assert_close(matrix_nuclear_norm(h), wanted, equal_nan=True, rtol=1e-5, atol=0)
    assert n == 1 or 0 < int(wanted.isnan().sum()) < 40 or exponent == 3


def test_which_texts_are_scored_at_once() -> None:
    """Those that fit in the cache together; compiled ones are not, for they ask for numbers."""
    assert fits(torch.zeros(2 * BLOCK // 4, 4)) and not fits(torch.zeros(2 * BLOCK // 4 + 1, 4))
    assert not fits(torch.zeros(0, 4)) and not fits(torch.zeros(7)) and not fits(torch.zeros(2, 2).long())
    assert not fits(torch.zeros(2, 2, device="meta"))
