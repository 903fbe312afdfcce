"""Mean and covariance of rows that arrive in batches: pure functions, sums in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor


class Moments(NamedTuple):
    """What is known of the rows seen: their number, their mean, and Σ (x − mean)(x − mean)ᵀ."""

    rows: int
    mean: Float[Tensor, " n"]
    scatter: Float[Tensor, "n n"]

    @property
    def covariance(self) -> Float[Tensor, "n n"]:
        """E[(x − E x)(x − E x)ᵀ]."""
        return self.scatter / self.rows

    @property
    def second(self) -> Float[Tensor, "n n"]:
        """E[x xᵀ], not centred."""
        return self.covariance + torch.outer(self.mean, self.mean)


def no_moments(size: int, device: torch.device | str = "cpu") -> Moments:
    """Moments of no rows."""
    zeros = torch.zeros(size, size, dtype=torch.float64, device=device)
    return Moments(0, zeros.new_zeros(size), zeros)


def add_rows(moments: Moments, rows: Float[Tensor, "tokens n"]) -> Moments:
    """Moments with further rows taken in.

    Each batch is centred on its own mean before its product is formed, and products are merged by

        M ← M + M_b + (n n_b/(n + n_b)) δδᵀ,    δ = mean_b − mean

    so that nothing cancels: the product may be formed in float32, sums are float64.

    Args:
        moments: those of the rows before.
        rows: any float type; float64 stays float64 throughout.

    Source: Chan, Golub & LeVeque, The American Statistician 37 (1983).
    """
    if rows.shape[0] == 0:
        return moments
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    mean = wide.double().mean(0)
    centred = wide - mean.to(wide.dtype)
    offset = centred.double().mean(0)
    scatter = (centred.T @ centred).double() - rows.shape[0] * torch.outer(offset, offset)
    count, total = rows.shape[0], moments.rows + rows.shape[0]
    delta = mean - moments.mean
    between = torch.outer(delta, delta) * (moments.rows * count / total)
    return Moments(total, moments.mean + delta * (count / total), moments.scatter + scatter + between)


def moments_of_table(table: Float[Tensor, "v d"], counts: Num[Tensor, " v"]) -> Moments:
    """Moments of the rows of a table, row v seen ``counts[v]`` times.

    Args:
        table: one row for each token.
        counts: how often each was looked up; at least one is above zero.
    """
    wide, weights = table.double(), counts.double()
    total = weights.sum()
    mean = (weights @ wide) / total
    centred = wide - mean
    return Moments(int(total), mean, centred.T @ (weights.unsqueeze(1) * centred))


def output_energy(
    moments: Moments, weight: Float[Tensor, "out n"], bias: Float[Tensor, " out"] | None
) -> Float[Tensor, " out"]:
    """E y_i² of y = W x + b: w_i Cov(x) w_iᵀ + (w_i E x + b_i)².

    Args:
        moments: of x.
        weight: W.
        bias: b, or None.
    """
    wide = weight.double()
    mean = wide @ moments.mean + (0 if bias is None else bias.double())
    return ((wide @ moments.covariance) * wide).sum(1) + mean.square()
