"""DCT-AdamW: which columns it takes, what error feedback keeps, how moments move, and AdamW where r = n."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from eckart.linalg.dct import dct_matrix
from eckart.optim import DCTAdamW, _basis
from eckart.optim._basis import basis_of
from eckart.optim.dct_adamw import move

DOUBLE = torch.float64


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def optimizer_of(shape: tuple[int, ...], rank: int, **options: Any) -> tuple[Tensor, DCTAdamW]:
    p = numbers(*shape, seed=99).requires_grad_()
    return p, DCTAdamW([p], lr=0.01, rank=rank, **options)


def train(p: Tensor, optimizer: DCTAdamW, steps: int) -> list[Tensor]:
    path = []
    for t in range(steps):
        p.grad = numbers(*p.shape, seed=t)
        optimizer.step()
        path.append(p.detach().clone())
    return path


@pytest.mark.parametrize("kind", ["dct2", "dct3", "random_qr"])
@pytest.mark.parametrize("n", [5, 24])
def test_bases_are_orthogonal_and_both_transforms_agree(kind: Any, n: int) -> None:
    x, indices = numbers(7, n), torch.tensor([0, 2, n - 1])
    product = basis_of(kind, "matmul", n, DOUBLE, torch.device("cpu"))
    q = product.matrix
    assert q is not None and float((q.mT @ q - torch.eye(n, dtype=DOUBLE)).abs().max()) < 1e-12
    torch.testing.assert_close(product.l1_norms, q.abs().sum(0))
    fast = basis_of(kind, "auto", n, DOUBLE, torch.device("cpu"))
    assert (fast.matrix is None) == (kind != "random_qr")
    for basis in (product, fast):
        torch.testing.assert_close(basis.scores(x), x @ q, rtol=0, atol=1e-12)
        torch.testing.assert_close(basis.project(x, indices), x @ q[:, indices], rtol=0, atol=1e-12)
        a = numbers(7, 3, seed=1)
        torch.testing.assert_close(basis.back(a, indices), a @ q[:, indices].mT, rtol=0, atol=1e-12)


def test_the_two_cosine_bases_are_columns_and_rows_of_one_matrix() -> None:
    q0 = dct_matrix(6)
    torch.testing.assert_close(basis_of("dct3", "matmul", 6, DOUBLE, torch.device("cpu")).matrix, q0)
    torch.testing.assert_close(basis_of("dct2", "matmul", 6, DOUBLE, torch.device("cpu")).matrix, q0.mT)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
def test_l2_keeps_more_than_any_other_columns_and_at_least_r_of_n(shape: tuple[int, int]) -> None:
    p, optimizer = optimizer_of(shape, 3, norm=2)
    train(p, optimizer, 1)
    a = numbers(*shape, seed=0)
    rows = (a if shape[0] >= shape[1] else a.mT) @ dct_matrix(8)
    energy = {chosen: float(rows[:, chosen].square().sum()) for chosen in combinations(range(8), 3)}
    chosen = tuple(optimizer.state[p]["indices"].tolist())
    assert chosen == max(energy, key=energy.__getitem__)
    assert energy[chosen] >= 3 / 8 * float(a.square().sum())


def test_l1_and_weighting_choose_by_their_own_sums() -> None:
    coordinates = torch.zeros(9, 4, dtype=DOUBLE)
    coordinates[:, 1], coordinates[0, 2] = 1.0, 4.0  # ℓ1: 9 and 4, squares: 9 and 16
    gradient = coordinates @ dct_matrix(4).mT
    chosen = {}
    for norm in (1, 2):
        p = torch.zeros(9, 4, dtype=DOUBLE, requires_grad=True)
        optimizer = DCTAdamW([p], lr=0.01, rank=1, norm=norm)
        p.grad = gradient.clone()
        optimizer.step()
        chosen[norm] = int(optimizer.state[p]["indices"])
    assert chosen == {1: 1, 2: 2}
    norms = dct_matrix(4).abs().sum(1)
    heavy, light = int(norms.argmax()), int(norms.argmin())
    coordinates = torch.zeros(9, 4, dtype=DOUBLE)
    coordinates[:, light], coordinates[:, heavy] = 1.0, 0.99
    for weighted, wanted in ((False, light), (True, heavy)):
        p = torch.zeros(9, 4, dtype=DOUBLE, requires_grad=True)
        optimizer = DCTAdamW([p], lr=0.01, rank=1, basis="dct2", weighted=weighted)
        p.grad = coordinates @ dct_matrix(4)
        optimizer.step()
        assert int(optimizer.state[p]["indices"]) == wanted


@pytest.mark.parametrize("shape", [(10, 6), (6, 10)])
@pytest.mark.parametrize("transform", ["fft", "matmul"])
def test_full_rank_is_adamw_in_the_rotated_basis(shape: tuple[int, int], transform: Any) -> None:
    p, optimizer = optimizer_of(shape, 6, transform=transform, weight_decay=0.1, betas=(0.8, 0.95))
    q = dct_matrix(6)

    def turn(t: Tensor) -> Tensor:
        return t @ q if shape[0] >= shape[1] else q.mT @ t

    turned = turn(p.detach()).clone().requires_grad_()
    adamw = torch.optim.AdamW([turned], lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    for t in range(4):
        p.grad = numbers(*shape, seed=t)
        turned.grad = turn(p.grad)
        optimizer.step()
        adamw.step()
    torch.testing.assert_close(turn(p.detach()), turned.detach(), rtol=0, atol=1e-10)


def test_what_is_no_matrix_is_adamws() -> None:
    table, vector, scalar = numbers(32, 4), numbers(7), numbers()
    ours = [t.clone().requires_grad_() for t in (table, vector, scalar, numbers(5, 4))]
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    optimizer = DCTAdamW(
        [{"params": ours[:3]}, {"params": ours[3:], "low_rank": False}], lr=0.02, rank=2, max_shape=32
    )
    adamw = torch.optim.AdamW(theirs, lr=0.02, weight_decay=0.01)
    for t in range(3):
        for mine, yours in zip(ours, theirs, strict=True):
            mine.grad = numbers(*mine.shape, seed=t)
            yours.grad = mine.grad.clone()
        optimizer.step()
        adamw.step()
    for mine, yours in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, yours, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("side", "low_rank"), [(31, True), (32, False)])
def test_max_shape_is_the_first_side_that_is_too_long(side: int, low_rank: bool) -> None:
    p, optimizer = optimizer_of((side, 4), 2, max_shape=32)
    train(p, optimizer, 1)
    assert ("indices" in optimizer.state[p]) == low_rank


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
@pytest.mark.parametrize("gap", [1, 3])
def test_error_feedback_keeps_exactly_what_the_subspace_lost(shape: tuple[int, int], gap: int) -> None:
    p, optimizer = optimizer_of(shape, 3, error_feedback="full", update_gap=gap)
    q, lost = dct_matrix(8), torch.zeros(shape, dtype=DOUBLE)
    for t in range(5):
        p.grad = numbers(*shape, seed=t)
        optimizer.step()
        state = optimizer.state[p]
        chosen = q[:, state["indices"].long()]
        project = chosen @ chosen.mT
        whole = p.grad + lost
        kept = whole @ project if shape[0] >= shape[1] else project @ whole
        lost = state["ef"].clone()
        torch.testing.assert_close(kept + lost, whole, rtol=0, atol=1e-12)
        inside = lost @ chosen if shape[0] >= shape[1] else chosen.mT @ lost
        assert float(inside.abs().max()) < 1e-12


def test_error_feedback_in_8_bits_stays_near_the_full_one() -> None:
    paths = {}
    for kind in ("full", "int8", None):
        p, optimizer = optimizer_of((24, 16), 4, error_feedback=kind)
        paths[kind] = train(p, optimizer, 6)[-1]
    assert optimizer.state[p].keys() == {"step", "m", "v", "indices"}
    near = float((paths["int8"] - paths["full"]).norm())
    assert 0 < near < 0.1 * float((paths[None] - paths["full"]).norm())


def test_columns_are_chosen_at_step_one_and_multiples_of_the_gap() -> None:
    p, optimizer = optimizer_of((12, 8), 2, update_gap=3)
    seen = []
    for t in range(7):
        p.grad = torch.outer(numbers(12, seed=t), dct_matrix(8)[:, t]) + 1e-6 * numbers(12, 8, seed=t)
        optimizer.step()
        seen.append(optimizer.state[p]["indices"].tolist())
    assert seen[0] == seen[1] != seen[2] and seen[2] == seen[3] == seen[4] != seen[5]
    assert [0 in seen[0], 2 in seen[2], 5 in seen[5]] == [True, True, True]


def test_moments_move_with_their_columns() -> None:
    q, moment = dct_matrix(9), numbers(5, 4)
    previous, indices = torch.tensor([0, 3, 5, 8]), torch.tensor([1, 3, 4, 8])
    moved = moment.clone()
    move(moved, previous, indices)
    torch.testing.assert_close(moved, moment @ (q[:, previous].mT @ q[:, indices]), rtol=0, atol=1e-12)
    assert torch.equal(moved[:, [1, 3]], moment[:, [1, 3]]) and not moved[:, [0, 2]].any()
    last = moment.clone()
    move(last, torch.tensor([0, 1, 2, 3]), torch.tensor([3, 6, 7, 8]))  # beyond the last of the old ones
    assert torch.equal(last[:, 0], moment[:, 3]) and not last[:, 1:].any()


def test_second_moments_stay_positive_and_rotation_changes_the_path() -> None:
    paths = {}
    for rotate in (True, False):
        p, optimizer = optimizer_of((12, 8), 3, rotate=rotate)
        paths[rotate] = train(p, optimizer, 4)
        assert bool((optimizer.state[p]["v"] >= 0).all())
    torch.testing.assert_close(paths[True][0], paths[False][0], rtol=0, atol=0)
    assert not torch.allclose(paths[True][-1], paths[False][-1])


def test_new_directions_start_small_with_the_shorter_memory() -> None:
    """The first step of a direction that is new at a late step is (1 − β₁)/√(1 − β₂) times lr."""
    for beta2, wanted in ((0.999, 3.162), (0.95, 0.447)):
        p = torch.zeros(4, 4, dtype=DOUBLE, requires_grad=True)
        optimizer = DCTAdamW([p], lr=1.0, rank=1, betas=(0.9, beta2), weight_decay=0.0)
        q = dct_matrix(4)
        p.grad = torch.outer(torch.ones(4, dtype=DOUBLE), q[:, 0])
        optimizer.step()
        optimizer.state[p]["step"].fill_(20_000)  # both bias corrections are one by now
        before = p.detach().clone()
        p.grad = torch.outer(torch.ones(4, dtype=DOUBLE), q[:, 2])
        optimizer.step()
        moved = ((before - p.detach()) @ q)[0]
        assert abs(float(moved[2]) - wanted) < 0.05 * wanted
        assert abs(float(moved[0])) < 1e-12


def test_the_fast_transform_is_taken_on_a_cpu_and_above_2048_elsewhere(monkeypatch) -> None:
    """Which it is is decided before anything is made on the device."""
    monkeypatch.setattr(_basis, "dct_matrix", lambda *_: torch.eye(2))
    monkeypatch.setattr(_basis, "dct_l1_norms", lambda *_: torch.ones(2))

    def fast(transform: str, n: int, device: str) -> bool:
        made = basis_of.__wrapped__("dct2", transform, n, torch.float32, torch.device(device))
        return made.matrix is None

    assert [fast("auto", n, "cuda") for n in (2, 2048, 2049)] == [False, False, True]
    assert [fast("auto", n, "cpu") for n in (2, 2049)] == [True, True]
    assert fast("fft", 2, "cuda") and not fast("matmul", 4096, "cpu")
