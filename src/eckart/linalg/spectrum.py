"""What the singular values of a matrix say about its rank: pure functions, batched over leading dimensions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

MIN_TAIL_VALUES = 10
"""Fewer singular values than this carry no tail exponent (WeightWatcher's own limit)."""


class SVD(NamedTuple):
    """M = U diag(S) Vh, with S falling."""

    U: Float[Tensor, "m k"]
    S: Float[Tensor, " k"]
    Vh: Float[Tensor, "k n"]


class HeavyTail(NamedTuple):
    """Power law p(λ) ∝ λ^−alpha fitted to the eigenvalues λ ≥ xmin."""

    alpha: Float[Tensor, "*batch"]
    xmin: Float[Tensor, "*batch"]
    distance: Float[Tensor, "*batch"]
    tail: Int[Tensor, "*batch"]


def singular_values(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch k"]:
    """Singular values in falling order, k = min(m, n), in float32 or the matrix's own wider type."""
    s: Tensor = torch.linalg.svdvals(matrix.to(torch.promote_types(matrix.dtype, torch.float32)))
    return s


def truncation_error(s: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k+1"]:
    """Relative Frobenius error of the best approximation of each rank 0 … k.

    error_r = sqrt(Σ_{i>r} σ_i² / Σ_i σ_i²); zero everywhere for the zero matrix.

    Args:
        s: singular values in falling order.

    Source: Eckart & Young, Psychometrika 1 (1936).
    """
    squares = s.double().square()
    left_over = squares.flip(-1).cumsum(-1).flip(-1)
    left_over = torch.cat([left_over, left_over.new_zeros(*left_over.shape[:-1], 1)], dim=-1)
    return torch.nan_to_num(left_over / left_over[..., :1]).sqrt()


def energy_curve(s: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k+1"]:
    """Share of the squared Frobenius norm that the leading 0 … k singular values hold, Σ_{i≤r} σ_i² / Σ_i σ_i²."""
    return 1 - truncation_error(s).square()


def rank_within(s: Float[Tensor, "*batch k"], error: float) -> Int[Tensor, "*batch"]:
    """Smallest rank whose best approximation has a relative Frobenius error of at most ``error``.

    Args:
        s: singular values in falling order.
        error: in [0, 1]. The rank that holds an energy share e is ``rank_within(s, math.sqrt(1 - e))``.
    """
    return (truncation_error(s) > error).sum(-1)


def effective_rank(s: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """Entropy rank exp(−Σ p_i ln p_i) of p_i = σ_i / Σσ: a real number from 1 to k; 0 for the zero matrix.

    Source: Roy & Vetterli, "The effective rank", EUSIPCO 2007.
    """
    total = s.double().sum(-1, keepdim=True)
    entropy = torch.special.entr(torch.nan_to_num(s.double() / total)).sum(-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), 0.0)


def stable_rank(s: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """‖M‖_F² / ‖M‖₂² = Σ σ_i² / σ_1²: at most the rank, little moved by small σ; 0 for the zero matrix.

    Source: Rudelson & Vershynin, J. ACM 54 (2007), arXiv:math/0503442.
    """
    squares = s.double().square()
    return torch.nan_to_num(squares.sum(-1) / squares.amax(-1))


def heavy_tail_exponent(s: Float[Tensor, "*batch k"]) -> HeavyTail:
    """Exponent of the power law that the largest eigenvalues λ = σ² of MᵀM follow.

    For a start value xmin the maximum-likelihood (Hill) estimate over its n eigenvalues λ_i ≥ xmin is
    alpha = 1 + n / Σ ln(λ_i / xmin). Every eigenvalue but the largest is tried as xmin, and the one with the
    least Kolmogorov–Smirnov distance max_i |1 − (λ_i / xmin)^(1 − alpha) − (i − 1)/n| is kept. A common factor
    of all λ leaves alpha as it is; its standard error is (alpha − 1)/√n.

    Args:
        s: singular values in falling order.

    Returns:
        alpha, xmin, distance and the number n of eigenvalues in the tail; alpha is NaN where fewer than
        `MIN_TAIL_VALUES` singular values are above σ_1·k·eps.

    Source: Clauset, Shalizi & Newman, SIAM Review 51 (2009), arXiv:0706.1062; as a measure of a trained layer:
    Martin & Mahoney, arXiv:1810.01075 and arXiv:2002.06716 (WeightWatcher).
    """
    count = s.shape[-1]
    if count < MIN_TAIL_VALUES:
        unfitted = torch.full(s.shape[:-1], torch.nan, dtype=torch.float64, device=s.device)
        return HeavyTail(unfitted, unfitted, unfitted, torch.zeros_like(unfitted, dtype=torch.int64))
    above = s > s.amax(-1, keepdim=True) * count * torch.finfo(s.dtype).eps
    logs = torch.where(above, 2 * s.double().log(), -torch.inf).flip(-1)
    alphas, distances = [], []
    for start in range(count - 1):
        n = count - start
        rise = logs[..., start:] - logs[..., start : start + 1]
        alpha = 1 + n / rise.sum(-1)
        theory = -torch.expm1(rise * (1 - alpha).unsqueeze(-1))
        observed = torch.arange(n, dtype=logs.dtype, device=logs.device) / n
        distance = (theory - observed).abs().amax(-1)
        alphas.append(alpha)
        distances.append(torch.where(alpha.isfinite() & (alpha > 1), distance, torch.inf))
    alpha, distance = (torch.stack(x, dim=-1) for x in (alphas, distances))
    best = distance.argmin(-1, keepdim=True)
    fitted = (above.sum(-1) >= MIN_TAIL_VALUES) & distance.gather(-1, best).squeeze(-1).isfinite()
    return HeavyTail(
        alpha=torch.where(fitted, alpha.gather(-1, best).squeeze(-1), torch.nan),
        xmin=torch.where(fitted, logs.gather(-1, best).squeeze(-1).exp(), torch.nan),
        distance=torch.where(fitted, distance.gather(-1, best).squeeze(-1), torch.nan),
        tail=torch.where(fitted, count - best.squeeze(-1), 0),
    )


def svd_within(matrix: Float[Tensor, "m n"], error: float) -> SVD:
    """SVD of the smallest rank that keeps M to a relative Frobenius error, in float64.

    A matrix of low rank is met by random sketches of doubling width, M ≈ Q QᵀM with Q an orthonormal basis of
    MΩ: half of the squared error is the sketch's, half the truncation's. Where the sketch would be wider than
    half the matrix, the dense SVD is truncated.

    Args:
        matrix: any real matrix without NaN or Inf.
        error: largest relative Frobenius error, in [0, 1). With 0 the dense SVD is returned whole.

    Source: Halko, Martinsson & Tropp, SIAM Review 53 (2011), arXiv:0909.4061.
    """
    matrix = matrix.double()
    norm = torch.linalg.matrix_norm(matrix)
    generator = torch.Generator().manual_seed(0)
    width = 32
    while error > 0 and width <= min(matrix.shape) // 2:
        sketch = torch.randn(matrix.shape[1], width, dtype=matrix.dtype, generator=generator).to(
            matrix.device
        )
        basis = torch.linalg.qr(matrix @ sketch).Q
        inside = basis.mT @ matrix
        if torch.linalg.matrix_norm(matrix - basis @ inside) <= error / math.sqrt(2) * norm:
            u, s, vh = torch.linalg.svd(inside, full_matrices=False)
            return _head(SVD(basis @ u, s, vh), error / math.sqrt(2))
        width *= 2
    return _head(SVD(*torch.linalg.svd(matrix, full_matrices=False)), error)


def _head(svd: SVD, error: float) -> SVD:
    rank = int(rank_within(svd.S, error)) if error > 0 else svd.S.numel()
    return SVD(svd.U[:, :rank], svd.S[:rank], svd.Vh[:rank])
