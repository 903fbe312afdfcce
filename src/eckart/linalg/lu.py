"""LU decompositions whose pivots are numbers one can keep: pure functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BLOCK = 32


class LDU(NamedTuple):
    """The leading r steps of W = P L diag(D) U: B = P L[:, :r], d = D[:r], A = U[:r] (unit diagonal)."""

    B: Float[Tensor, "m r"]
    d: Float[Tensor, " r"]
    A: Float[Tensor, "r n"]


def row_order(matrix: Float[Tensor, "m n"]) -> Int[Tensor, " m"]:
    """The rows in the order in which elimination with partial pivoting takes them: W[order] = L diag(D) U.

    Args:
        matrix: float32 or float64. Of equally large pivots the library chooses one.
    """
    swaps = torch.linalg.lu_factor_ex(matrix).pivots.tolist()
    order = list(range(matrix.shape[0]))
    for step, other in enumerate(swaps):
        order[step], order[other - 1] = order[other - 1], order[step]
    return torch.tensor(order, device=matrix.device)


def ldu(matrix: Float[Tensor, "m n"], pivots: Int[Tensor, " r"]) -> LDU:
    """Eliminate in float64 with the given rows as pivots, in their order, one column after the other.

    B diag(d) A equals W on the pivot rows and on the first r columns. Where a pivot is zero to rounding (a matrix
    of lower rank, equal or zero rows) its d, its column of B and its row of A are zero instead of NaN.

    Args:
        matrix: float32 or float64.
        pivots: r ≤ min(m, n) row numbers, such as ``row_order(matrix)[:r]``.
    """
    r, dtype = pivots.numel(), matrix.dtype
    floor = torch.finfo(dtype).eps * max(matrix.shape) * matrix.abs().max()
    wide = matrix.cpu().double() if matrix.device.type == "mps" else matrix.double()
    pivots = pivots.to(wide.device).long()
    rows, others = wide[pivots], torch.ones(len(wide), dtype=torch.bool, device=wide.device)
    others[pivots] = False
    lower, upper = _eliminate(rows[:, :r], floor)
    d = upper.diagonal()
    dead = d.abs() <= floor
    solvable = upper + torch.diag(dead.to(d))
    right = torch.linalg.solve_triangular(lower, rows[:, r:], upper=False, unitriangular=True)
    a = torch.cat([upper, right], 1) / torch.where(dead, 1.0, d).unsqueeze(1)
    a[torch.arange(r), torch.arange(r)] = 1.0
    b = lower.new_empty(len(wide), r)
    b[pivots] = lower
    b[others] = torch.linalg.solve_triangular(solvable, wide[others, :r], upper=True, left=False)
    found = b.masked_fill(dead, 0.0), d.masked_fill(dead, 0.0), a.masked_fill(dead.unsqueeze(1), 0.0)
    return LDU(*(t.to(dtype) for t in found))


def _eliminate(
    square: Float[Tensor, "k k"], floor: Tensor
) -> tuple[Float[Tensor, "k k"], Float[Tensor, "k k"]]:
    """Unit lower L and upper U with L U = square, without exchanging rows: LAPACK's, where it would exchange none,
    or else by halves, so that products do the work."""
    k = square.shape[0]
    found, swaps, _ = torch.linalg.lu_factor_ex(square)
    plain = swaps.tolist() == list(range(1, k + 1))
    if plain and bool((found.diagonal().abs() > floor).all()):
        return torch.tril(found, -1).fill_diagonal_(1.0), found.triu()
    if k <= _BLOCK:
        upper, lower = square.clone(), torch.eye(k, dtype=square.dtype, device=square.device)
        for i in range(k - 1):
            pivot = upper[i, i]
            column = torch.where(pivot.abs() <= floor, 0.0, upper[i + 1 :, i] / pivot)
            lower[i + 1 :, i] = column
            upper[i + 1 :, i:] -= column.unsqueeze(1) * upper[i, i:]
        return lower, upper.triu()
    half = k // 2
    lower, upper = torch.zeros_like(square), torch.zeros_like(square)
    l1, u1 = _eliminate(square[:half, :half], floor)
    solvable = u1 + torch.diag((u1.diagonal().abs() <= floor).to(u1))
    right = torch.linalg.solve_triangular(l1, square[:half, half:], upper=False, unitriangular=True)
    below = torch.linalg.solve_triangular(solvable, square[half:, :half], upper=True, left=False)
    l2, u2 = _eliminate(square[half:, half:] - below @ right, floor)
    lower[:half, :half], lower[half:, :half], lower[half:, half:] = l1, below, l2
    upper[:half, :half], upper[:half, half:], upper[half:, half:] = u1, right, u2
    return lower, upper
