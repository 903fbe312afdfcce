"""Many small ridge regressions at once, exact or only as good as asked: pure functions, batched.

    min_x ‖A x − b‖² + c ‖x‖²        A (*batch, q, k)   b (*batch, q)   c (*batch)

Source: sketch-and-precondition least squares as used by Gu et al., ICLR 2024, arXiv:2302.11068.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ROUNDING = 8
"""A pivot below so many square roots of the rounding of the largest, or as many as there are unknowns, is none."""
Iteration = Literal["unit", "damped", "heavy_ball", "pcg"]


def normal_equations(
    A: Float[Tensor, "*batch q k"], b: Float[Tensor, "*batch q"], ridge: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch k"]:
    """The solution by Cholesky of AᵀA + c I, once refined; of least norm where that is singular.

    Args:
        A: rows of zeros change nothing, so that a batch may be padded with them.
        b: right-hand sides.
        ridge: c, not negative.
    """
    gram = A.mT @ A
    gram.diagonal(dim1=-2, dim2=-1).add_(ridge.unsqueeze(-1))
    x, factor, singular = cholesky_solution(gram, _times(A.mT, b))
    if not bool((ridge > 0).all()):  # the condition number is squared: one refinement wins it back
        slope = _slope(A, b, ridge, x)
        x = x + torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1)
    if bool(singular.any()):
        rows, targets = _with_ridge(A[singular], b[singular], ridge[singular])
        x[singular] = _times(torch.linalg.pinv(rows), targets)
    return x


def cholesky_solution(
    gram: Float[Tensor, "*batch k k"], right: Float[Tensor, "*batch k"]
) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k k"], Bool[Tensor, "*batch"]]:
    """The solution of G x = b, the factor of G, and where G is singular to working precision: x is nothing there."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal(dim1=-2, dim2=-1)
    floor = max(gram.shape[-1], ROUNDING) * math.sqrt(torch.finfo(gram.dtype).eps) * pivots.amax(-1)
    singular = (failed > 0) | ~(pivots.amin(-1) > floor)
    return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1), factor, singular


def conjugate_gradient(
    A: Float[Tensor, "*batch q k"],
    b: Float[Tensor, "*batch q"],
    ridge: Float[Tensor, "*batch"],
    start: Float[Tensor, "*batch k"],
    steps: int,
    R: Float[Tensor, "*batch k k"] | None = None,
) -> Float[Tensor, "iterates *batch k"]:
    """Iterates of conjugate gradients on the normal equations, preconditioned by x = R⁻¹ z where R is given.

    Args:
        A: as `normal_equations`.
        b: right-hand sides.
        ridge: c, not negative.
        start: x_0. A start of zero leaves an error of fixed relative size.
        steps: how many.
        R: upper triangular, AᵀA + c I ≈ RᵀR.
    """
    x, iterates = start, [start]
    r = _solve_transposed(R, _slope(A, b, ridge, x))
    p, rho = r, r.square().sum(-1, keepdim=True)
    for _ in range(steps):
        move = _solve(R, p)
        curved = _solve_transposed(R, _times(A.mT, _times(A, move)) + ridge.unsqueeze(-1) * move)
        bend = (p * curved).sum(-1, keepdim=True)
        alpha = torch.where(bend > 0, rho / bend, 0.0)
        x = x + alpha * move
        r = r - alpha * curved
        new = r.square().sum(-1, keepdim=True)
        p = r + torch.where(rho > 0, new / rho, 0.0) * p
        rho = new
        iterates.append(x)
    return torch.stack(iterates)


def sketch_start(
    SA: Float[Tensor, "*batch s k"], Sb: Float[Tensor, "*batch s"], ridge: Float[Tensor, "*batch"]
) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k k"]]:
    """Sketch-and-solve: x_0 = R⁻¹ Qᵀ S b and R, from S A = Q R (with √c I below it).

    Args:
        SA: the sketched matrix, s ≥ k rows.
        Sb: the sketched right-hand side.
        ridge: c, not negative.
    """
    rows, targets = _with_ridge(SA, Sb, ridge)
    q, r = torch.linalg.qr(rows)
    return _solve(r, _times(q.mT, targets)), r


def preconditioned(
    A: Float[Tensor, "*batch q k"],
    b: Float[Tensor, "*batch q"],
    ridge: Float[Tensor, "*batch"],
    start: Float[Tensor, "*batch k"],
    R: Float[Tensor, "*batch k k"],
    sketch_rows: int,
    steps: int,
    iteration: Iteration = "pcg",
) -> Float[Tensor, "iterates *batch k"]:
    """Iterates of z ← z + τ R⁻ᵀ(Aᵀ(b − A x) − c x) + μ (z − z₋), x = R⁻¹ z, with ρ = √(k/s):

    "unit" τ = 1 (diverges for s < 11.7 k), "damped" τ = (1−ρ²)²/(1+ρ²), "heavy_ball" τ = (1−ρ²)², μ = ρ², or "pcg".

    Args:
        A: as `normal_equations`.
        b: right-hand sides.
        ridge: c, not negative.
        start: x_0.
        R: from `sketch_start`.
        sketch_rows: s.
        steps: how many.
        iteration: which.
    """
    if iteration == "pcg":
        return conjugate_gradient(A, b, ridge, start, steps, R)
    square = A.shape[-1] / sketch_rows
    step = {"unit": 1.0, "damped": (1 - square) ** 2 / (1 + square), "heavy_ball": (1 - square) ** 2}[
        iteration
    ]
    momentum = square if iteration == "heavy_ball" else 0.0
    x, before, iterates = start, start, [start]
    for _ in range(steps):
        move = _solve(R, _solve_transposed(R, _slope(A, b, ridge, x)))
        x, before = x + step * move + momentum * (x - before), x
        iterates.append(x)
    return torch.stack(iterates)


def preconditioned_spectrum(
    A: Float[Tensor, "*batch q k"], R: Float[Tensor, "*batch k k"]
) -> Float[Tensor, "*batch k"]:
    """Singular values of A R⁻¹: within [1/(1+ρ), 1/(1−ρ)] for a Gaussian sketch."""
    values: Tensor = torch.linalg.svdvals(torch.linalg.solve_triangular(R, A, upper=True, left=False))
    return values


def count_sketch(
    A: Float[Tensor, "*batch q k"], rows: int, generator: torch.Generator
) -> Float[Tensor, "*batch s k"]:
    """S A for an S that has one ±1 in each column, at a random place: O(q k).

    Args:
        A: what to sketch; the right-hand side may be its last column.
        rows: s.
        generator: on the CPU.
    """
    q = A.shape[-2]
    place = torch.randint(rows, (q,), generator=generator).to(A.device)
    sign = torch.randint(2, (q, 1), generator=generator).to(A) * 2 - 1
    return A.new_zeros(*A.shape[:-2], rows, A.shape[-1]).index_add_(-2, place, A * sign)


def _slope(A: Tensor, b: Tensor, ridge: Tensor, x: Tensor) -> Tensor:
    return _times(A.mT, b - _times(A, x)) - ridge.unsqueeze(-1) * x


def _with_ridge(A: Tensor, b: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor]:
    if not bool((ridge > 0).any()):
        return A, b
    k = A.shape[-1]
    below = ridge.sqrt()[..., None, None] * torch.eye(k, dtype=A.dtype, device=A.device)
    return torch.cat([A, below], dim=-2), torch.cat([b, b.new_zeros(*b.shape[:-1], k)], dim=-1)


def _times(A: Tensor, x: Tensor) -> Tensor:
    product: Tensor = A @ x.unsqueeze(-1)
    return product.squeeze(-1)


def _solve(R: Tensor | None, x: Tensor) -> Tensor:
    if R is None:
        return x
    solved: Tensor = torch.linalg.solve_triangular(R, x.unsqueeze(-1), upper=True)
    return solved.squeeze(-1)


def _solve_transposed(R: Tensor | None, x: Tensor) -> Tensor:
    if R is None:
        return x
    solved: Tensor = torch.linalg.solve_triangular(R.mT, x.unsqueeze(-1), upper=False)
    return solved.squeeze(-1)
