"""A matrix of low rank from some of its entries by alternating least squares: pure functions.

    min_{U,V} Σ_{(i,j)∈Ω} w_ij (u_i·v_j − M_ij)² + Σ_i c_i ‖u_i‖² + Σ_j c′_j ‖v_j‖²

Rows are solved in batches of similar length, padded; nothing of the size of M is formed.

Source: Gu, Song, Yin & Zhang, ICLR 2024, arXiv:2302.11068.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from eckart.linalg.regression import (
    cholesky_solution,
    conjugate_gradient,
    count_sketch,
    normal_equations,
    preconditioned,
    sketch_start,
)

Solver = Literal["auto", "cholesky", "cg", "sketch", "sketch-unit"]
BATCH, EQUATIONS = 2**21, 2**19
"""Numbers of a padded batch (rows, observations, columns), and of a block of normal equations."""
PRODUCTS, TABLE, GATHERED = 256, 2**21, 2**18
"""Products of two factors' columns that are summed at once, numbers in their table, and numbers of the rows that are
gathered at once."""
DIRECT_RANK, DIRECT_ROWS = 64, 4
"""Up to this rank, or this many observations for each column, Cholesky is the faster solver on a CPU."""


@dataclass(frozen=True)
class Compressed:
    """Observed entries sorted by row: those of row i are ``pointer[i] … pointer[i + 1] − 1``."""

    pointer: Int[Tensor, " rows_and_one"]
    column: Int[Tensor, " nnz"]
    value: Float[Tensor, " nnz"]
    weight: Float[Tensor, " nnz"] | None = None

    def part(self, start: int, stop: int) -> Compressed:
        """The rows ``start … stop − 1``, copied, so that a worker is sent these alone."""
        entries = slice(int(self.pointer[start]), int(self.pointer[stop]))
        pointer = self.pointer[start : stop + 1] - self.pointer[start]
        weight = None if self.weight is None else self.weight[entries].clone()
        return Compressed(pointer, self.column[entries].clone(), self.value[entries].clone(), weight)


@dataclass(frozen=True)
class RowSolver:
    """How well each regression is solved: exactly by "cholesky", or ``steps`` steps of "cg", "sketch" or "sketch-unit".

    "auto" is "cholesky" up to rank `DIRECT_RANK` and for rows of at most `DIRECT_ROWS` observations per column, else
    "cg". Both sketches have ``sketch_factor`` · k rows; shorter rows are solved exactly. With ``everywhere`` each row
    also has a zero of weight one in every column: ‖V u‖² is added to its loss, as R of V = Q R stands for V.
    """

    kind: Solver = "auto"
    steps: int = 3
    sketch_factor: int = 4
    seed: int = 0
    everywhere: bool = False

    def __call__(
        self,
        data: Compressed,
        other: Float[Tensor, "n k"],
        ridge: Float[Tensor, " m"],
        start: Float[Tensor, "m k"] | None = None,
    ) -> Float[Tensor, "m k"]:
        """The factor of every row, given the other factor.

        Args:
            data: the observed entries of the rows.
            other: V, one row for each column of the matrix.
            ridge: c_i.
            start: where "cg" starts; zero where None.
        """
        k = other.shape[1]
        below = torch.linalg.qr(other).R if self.everywhere else other[:0]
        counts = data.pointer.diff()
        solved, left = other.new_zeros(len(counts), k), counts > 0
        if (self.kind == "cholesky" or (self.kind == "auto" and k <= DIRECT_RANK)) and bool(
            (ridge > 0).all()
        ):
            solved, left = ridge_solutions(data, other, ridge, below)
        lengths, order = torch.where(left, counts, 0).sort()
        first = len(left) - int(left.sum())
        while first < len(order):
            shortest = int(lengths[first])
            last = int(torch.searchsorted(lengths, max(shortest + shortest // 4, 8), right=True))
            last = min(last, first + max(1, BATCH // ((int(lengths[last - 1]) + len(below)) * k)))
            rows = order[first:last]
            A, b = _gather(data, rows, int(lengths[last - 1]), other)
            if len(below):
                A = torch.cat([A, below.expand(len(A), -1, -1)], 1)
                b = torch.cat([b, b.new_zeros(len(b), len(below))], 1)
            x = None if start is None else start[rows]
            solved[rows] = self._solve(A, b, ridge[rows], x)
            first = last
        return solved

    def _solve(self, A: Tensor, b: Tensor, ridge: Tensor, start: Tensor | None) -> Tensor:
        q, k = A.shape[-2:]
        kind = self.kind
        if kind == "auto":
            kind = "cholesky" if k <= DIRECT_RANK or q <= DIRECT_ROWS * k else "cg"
        s = self.sketch_factor * k
        if kind == "cholesky" or (kind != "cg" and q <= s):
            return normal_equations(A, b, ridge)
        if kind == "cg":
            x = A.new_zeros(len(A), k) if start is None else start
            return conjugate_gradient(A, b, ridge, x, self.steps)[-1]
        generator = torch.Generator().manual_seed(self.seed)
        sketched = count_sketch(torch.cat([A, b.unsqueeze(-1)], dim=-1), s, generator)
        x, R = sketch_start(sketched[..., :-1], sketched[..., -1], ridge)
        iteration: Literal["unit", "pcg"] = "unit" if kind == "sketch-unit" else "pcg"
        return preconditioned(A, b, ridge, x, R, s, self.steps, iteration)[-1]


def ridge_solutions(
    data: Compressed, other: Float[Tensor, "n k"], ridge: Float[Tensor, " m"], below: Float[Tensor, "p k"]
) -> tuple[Float[Tensor, "m k"], Bool[Tensor, " m"]]:
    """The factor of every row by its normal equations, and the rows whose equations are singular: they are zero.

    Σ_j w_ij v_j v_jᵀ is a sum over the table of v vᵀ, whose columns are taken a few at a time: nothing is gathered.

    Args:
        data: the observed entries of the rows.
        other: V.
        ridge: c_i, positive.
        below: rows that every regression has too, with targets of zero.
    """
    m, k = len(ridge), other.shape[1]
    at_once = max(1, min(PRODUCTS, TABLE // len(other)))
    upper = torch.triu_indices(k, k, device=other.device).split(at_once, 1)
    solved, singular = other.new_zeros(m, k), torch.zeros(m, dtype=torch.bool, device=other.device)
    weighted = data.value if data.weight is None else data.weight * data.value
    for rows in torch.arange(m, device=other.device).split(max(1, EQUATIONS // (k * k))):
        pointer = data.pointer[int(rows[0]) : int(rows[-1]) + 2]
        seen = slice(int(pointer[0]), int(pointer[-1]))
        column, starts = data.column[seen], (pointer - pointer[0]).to(data.column)

        def total(table: Tensor, weight: Tensor | None) -> Tensor:
            of_each = None if weight is None else weight[seen]  # noqa: B023
            sums: Tensor = embedding_bag(
                column,  # noqa: B023
                table,
                starts,  # noqa: B023
                mode="sum",
                per_sample_weights=of_each,
                include_last_offset=True,
            )
            return sums

        gram = (below.mT @ below).repeat(len(rows), 1, 1)
        for i, j in upper:
            gram[:, i, j] += total(_products(other, i, j), data.weight)
        gram = gram.triu() + gram.triu(1).mT
        gram.diagonal(dim1=-2, dim2=-1).add_(ridge[rows].unsqueeze(-1))
        x, _, singular[rows] = cholesky_solution(gram, total(other, weighted))
        solved[rows] = torch.where(singular[rows].unsqueeze(1), 0.0, x)
    return solved, singular & (data.pointer.diff() > 0)


def _products(V: Float[Tensor, "n k"], i: Int[Tensor, " p"], j: Int[Tensor, " p"]) -> Float[Tensor, "n p"]:
    """The products of columns i and j, with no second table beside theirs."""
    table, step = V[:, i], GATHERED // len(i)
    for part, own in zip(table.split(step), V.split(step), strict=True):
        part.mul_(own[:, j])
    return table


def _gather(data: Compressed, rows: Tensor, length: int, other: Tensor) -> tuple[Tensor, Tensor]:
    """√w A and √w b of these rows, padded with zeros to one length."""
    start, stop = data.pointer[rows], data.pointer[rows + 1]
    place = start.unsqueeze(1) + torch.arange(length, device=start.device)
    there = place < stop.unsqueeze(1)
    place = torch.where(there, place, start.unsqueeze(1))
    scale = there.to(other)
    if data.weight is not None:
        scale = scale * data.weight[place].sqrt()
    A = other[data.column[place]]
    return A.mul_(scale.unsqueeze(-1)), data.value[place] * scale


class Factors(NamedTuple):
    """U and V of M ≈ U Vᵀ, and the course of the alternation."""

    U: Float[Tensor, "m k"]
    V: Float[Tensor, "n k"]
    rmse: list[float]
    converged: bool


Solve = Callable[[Compressed, Tensor, Tensor, Tensor | None], Tensor]


def alternate(
    halves: Callable[[int], tuple[Compressed, Compressed]],
    U: Float[Tensor, "m k"],
    solve: Solve,
    measure: Callable[[Tensor, Tensor], float],
    ridge_rows: Float[Tensor, " m"],
    ridge_cols: Float[Tensor, " n"],
    *,
    orthonormal: bool,
    max_iter: int,
    tol: float,
    watch: Callable[[int, float, Tensor, Tensor], None] = lambda *_: None,
) -> Factors:
    """V from U, U from V, and again. A warm start is carried through each QR by R: U V̂ᵀ = (U Rᵀ) Vᵀ.

    Args:
        halves: iteration -> the observations by column and by row that its two half-steps use.
        U: the start.
        solve: a `RowSolver`, or what spreads one over workers.
        measure: the RMSE of a pair of factors.
        ridge_rows: c_i.
        ridge_cols: c′_j.
        orthonormal: orthonormalise the known factor of each half-step; only without a ridge is that without effect on
            the objective.
        max_iter: iterations at most.
        tol: end when the RMSE changes by less than this share of it.
        watch: called with t, the RMSE and the factors after iteration t = 0 … .
    """
    history: list[float] = []
    warm: Tensor | None = None
    for t in range(max_iter):
        by_column, by_row = halves(t)
        V = solve(by_column, U, ridge_cols, warm)
        start = U
        if orthonormal:
            V, R = torch.linalg.qr(V)
            start = U @ R.mT
        left = solve(by_row, V, ridge_rows, start)
        history.append(measure(left, V))
        watch(t, history[-1], left, V)
        converged = t > 0 and abs(history[-2] - history[-1]) <= tol * history[-2]
        if converged or t + 1 == max_iter:
            return Factors(left, V, history, converged)
        U, warm = left, V
        if orthonormal:
            U, R = torch.linalg.qr(left)
            warm = V @ R.mT
    raise ValueError(f"max_iter is {max_iter}: at least one iteration")


def least_absolute(
    data: Compressed, V: Float[Tensor, "n k"], floor: float, max_iter: int = 100, tol: float = 1e-7
) -> Float[Tensor, "m k"]:
    """argmin_u Σ_j w_ij |M_ij − u · v_j| of every row, by least squares reweighted with 1/max(|residual|, floor).

    Args:
        data: the observed entries by row.
        V: the known factor.
        floor: residuals below it count as squares, in the unit of M.
        max_iter: reweightings at most.
        tol: a row has its end when its factor moves by no more than this share of its largest entry.
    """
    solver, ridge = RowSolver("cholesky"), V.new_zeros(len(data.pointer) - 1)
    rows = torch.repeat_interleave(torch.arange(len(ridge), device=V.device), data.pointer.diff())
    U = solver(data, V, ridge)
    moving = torch.ones(len(U), 1, dtype=torch.bool, device=V.device)
    for _ in range(max_iter):
        weight = floor / (entries(U, V, rows, data.column) - data.value).abs().clamp_min(floor)
        if data.weight is not None:
            weight = weight * data.weight
        new = solver(replace(data, weight=weight), V, ridge)
        moving = moving & ((new - U).abs().amax(1, keepdim=True) > tol * new.abs().amax(1, keepdim=True))
        U = torch.where(moving, new, U)
        if not bool(moving.any()):
            break
    return U


def absolute_loss(data: Compressed, U: Float[Tensor, "m k"], V: Float[Tensor, "n k"]) -> Float[Tensor, " m"]:
    """Σ_j w_ij |M_ij − u_i · v_j| of every row."""
    rows = torch.repeat_interleave(torch.arange(len(U), device=U.device), data.pointer.diff())
    size = (entries(U, V, rows, data.column) - data.value).abs()
    return U.new_zeros(len(U)).index_add_(0, rows, size if data.weight is None else data.weight * size)


def clip_incoherent(U: Float[Tensor, "m k"], incoherence: float) -> Float[Tensor, "m k"]:
    """U with every entry above 2 μ √(k/m) in size set to zero.

    Args:
        U: orthonormal columns.
        incoherence: μ; the rows of an incoherent U are at most μ √(k/m) long.
    """
    threshold = 2 * incoherence * math.sqrt(U.shape[1] / U.shape[0])
    return torch.where(U.abs() > threshold, 0.0, U)


def entries(
    U: Float[Tensor, "m k"], V: Float[Tensor, "n k"], rows: Int[Tensor, " nnz"], cols: Int[Tensor, " nnz"]
) -> Float[Tensor, " nnz"]:
    """u_i · v_j of these entries."""
    pieces = max(1, len(rows) * U.shape[1] // GATHERED)
    parts = zip(rows.tensor_split(pieces), cols.tensor_split(pieces), strict=True)
    return torch.cat([(U.index_select(0, i) * V.index_select(0, j)).sum(1) for i, j in parts])


def inner_residual(
    data: Compressed,
    U: Float[Tensor, "m k"],
    V: Float[Tensor, "n k"],
    ridge: Float[Tensor, " m"],
    everywhere: bool = False,
) -> float:
    """How far U is from solving its regressions: ‖AᵀW(b − A u) − c u‖ of all rows, relative to ‖AᵀWb‖.

    Args:
        data: the observed entries by row.
        U: what was solved for.
        V: the known factor.
        ridge: c_i.
        everywhere: as of the `RowSolver`.
    """
    slope, target = -ridge.unsqueeze(1) * U, torch.zeros_like(U)
    if everywhere:
        slope = slope - U @ (V.mT @ V)
    step = max(1, GATHERED // U.shape[1])
    for start in range(0, len(data.column), step):
        place = slice(start, min(start + step, len(data.column)))
        row, value = _owners(data.pointer, place), data.value[place]
        known = V.index_select(0, data.column[place])
        rest = value - (U.index_select(0, row) * known).sum(1)
        scale = torch.ones_like(value) if data.weight is None else data.weight[place]
        slope.index_add_(0, row, known * (scale * rest).unsqueeze(1))
        target.index_add_(0, row, known * (scale * value).unsqueeze(1))
    return float(slope.norm() / target.norm().clamp_min(torch.finfo(U.dtype).tiny))


def _owners(pointer: Int[Tensor, " rows_and_one"], place: slice) -> Int[Tensor, " p"]:
    """The rows of these entries."""
    first = int(torch.searchsorted(pointer, place.start, right=True)) - 1
    last = int(torch.searchsorted(pointer, place.stop))
    return torch.arange(first, last, device=pointer.device).repeat_interleave(
        pointer[first : last + 1].clamp(place.start, place.stop).diff()
    )
