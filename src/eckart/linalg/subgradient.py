"""Sub-gradient descent on a factored matrix measured linearly, with outliers: pure functions.

    f(U) = Σ_i w_i ℓ(⟨A_i, U Uᵀ⟩ − y_i)      D = sym(Σ_i w_i ℓ′(ρ_i) A_i)      U ← U − 2 η_t D U

Source: Ma & Fattahi, JMLR 2023, arXiv:2202.08788.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.linalg.operators import Operator, OuterSum, dense, frobenius, spectral_norm

Loss = Literal["l1", "l2", "huber"]
StepRule = Literal["normalized_geometric", "geometric", "residual", "quantile", "constant"]
Norm = Literal["fro", "spectral"]


class Descent(NamedTuple):
    """Where a descent ended, and its course: one loss more than steps."""

    left: Float[Tensor, "d1 k"]
    right: Float[Tensor, "d2 k"]
    losses: list[float]
    steps: list[float]
    converged: bool


@dataclass(frozen=True)
class StepSize:
    """η_t by ``rule``: η0 ρᵗ/‖D‖ ("normalized_geometric"), η0 ρᵗ ("geometric"), η0 mean|ρ_i| ("residual"),
    η0 Q_q(|ρ_i|) ("quantile") or η0 ("constant"), with ρ = ``decay``, q = ``quantile`` and ``norm`` that of D.
    """

    rule: StepRule = "normalized_geometric"
    eta0: float = 0.3
    decay: float = 0.98
    quantile: float = 0.5
    norm: Norm = "spectral"

    def __call__(
        self,
        t: int,
        residual: Float[Tensor, " m"],
        D: Tensor | OuterSum,
        weights: Float[Tensor, " m"] | None = None,
        symmetric: bool = True,
    ) -> float:
        """η_t, given the residuals and the adjoint D of their slopes."""
        size = residual.abs()
        if self.rule == "constant":
            return self.eta0
        if self.rule == "residual":
            return self.eta0 * float(size.mean() if weights is None else weights @ size / weights.sum())
        if self.rule == "quantile":
            return self.eta0 * float(weighted_quantile(size, self.quantile, weights))
        rate = self.eta0 * self.decay**t
        if self.rule == "geometric":
            return rate
        length = float(frobenius(D, symmetric) if self.norm == "fro" else spectral_norm(D, symmetric))
        return rate / length if length else 0.0


def weighted_quantile(
    values: Float[Tensor, " m"], q: float, weights: Float[Tensor, " m"] | None = None
) -> Float[Tensor, ""]:
    """The q-quantile with linear interpolation; a weight of n counts its value n times.

    Args:
        values: in any order.
        q: in [0, 1].
        weights: not negative; ones where None.
    """
    if weights is None:
        place = q * (values.numel() - 1)
        low, high = int(place), min(int(place) + 1, values.numel() - 1)
        pair = values.sort().values[[low, high]]
        return torch.lerp(pair[0], pair[1], place - low)
    order = values.argsort()
    ends = weights[order].cumsum(0)
    place = float((q * (ends[-1] - 1)).clamp_min(0))
    found = torch.searchsorted(ends, ends.new_tensor([float(int(place)), float(int(place) + 1)]), right=True)
    pair = values[order][found.clamp_max(values.numel() - 1)]
    return torch.lerp(pair[0], pair[1], place - int(place))


def loss_and_slope(
    residual: Float[Tensor, " m"], loss: Loss, delta: float = 0.1
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """ℓ(ρ) and ℓ′(ρ): |ρ| ("l1", with ℓ′(0) = 0), ρ²/2 ("l2"), or |ρ| rounded off within ``delta`` ("huber")."""
    if loss == "l1":
        return residual.abs(), residual.sign()
    if loss == "l2":
        return residual.square() / 2, residual
    inside = (residual / delta).clamp(-1, 1)
    return inside * (residual - delta * inside / 2), inside


def signed_mean(
    operator: Operator, slope: Float[Tensor, " m"], weights: Float[Tensor, " m"], symmetric: bool = True
) -> Float[Tensor, "d1 d2"]:
    """Σ_i w_i ℓ′_i A_i as a matrix, symmetrised where X is symmetric: D for ℓ′(ρ), and C for sign(y)."""
    full = dense(operator.adjoint(weights * slope))
    return (full + full.mT) / 2 if symmetric else full


def spectral_factors(
    C: Float[Tensor, "d1 d2"], rank: int, symmetric: bool = True
) -> tuple[Float[Tensor, "d1 k"], Float[Tensor, "d2 k"]]:
    """B with B Bᵀ = the positive part of the leading ``rank`` eigenpairs of C, twice; or the balanced SVD factors."""
    if symmetric:
        values, vectors = torch.linalg.eigh(C)
        factor = vectors.flip(1)[:, :rank] * values.flip(0)[:rank].clamp_min(0).sqrt()
        return factor, factor
    u, s, vh = torch.linalg.svd(C, full_matrices=False)
    return u[:, :rank] * s[:rank].sqrt(), vh[:rank].mT * s[:rank].sqrt()


def direction(
    D: Tensor | OuterSum, left: Float[Tensor, "d1 k"], right: Float[Tensor, "d2 k"], symmetric: bool = True
) -> tuple[Float[Tensor, "d1 k"], Float[Tensor, "d2 k"]]:
    """2 sym(D) U, the sub-gradient, twice; or (2 D V, 2 Dᵀ U), which moves U Vᵀ as fast."""
    if symmetric:
        step = D @ left + D.mT @ left
        return step, step
    return 2 * (D @ right), 2 * (D.mT @ left)


def subgradient_descent(
    operator: Operator,
    y: Float[Tensor, " m"],
    left: Float[Tensor, "d1 k"],
    right: Float[Tensor, "d2 k"] | None = None,
    *,
    weights: Float[Tensor, " m"] | None = None,
    loss: Loss = "l1",
    delta: float = 0.1,
    step: StepSize = StepSize(),
    max_iter: int = 600,
    tol: float = 0.0,
    watch: Callable[[int, float, Tensor, Tensor], bool | None] = lambda *_: None,
) -> Descent:
    """Descend from ``left`` (symmetric, X = U Uᵀ) or from the pair (X = U Vᵀ).

    Args:
        operator: the measurements.
        y: what was measured.
        left: U at the start.
        right: V at the start; None for the symmetric model.
        weights: how often each measurement counts, not negative.
        loss: ℓ; ``delta`` is the width within which "huber" is quadratic.
        step: η_t.
        max_iter: steps at most.
        tol: end when a step is shorter than this share of the factor. A loss that is no number ends it too.
        watch: called with t, the loss and the factors at t = 0 … ; true ends the run.
    """
    symmetric = right is None
    right = left if right is None else right
    shares = torch.full_like(y, 1 / y.numel()) if weights is None else weights / weights.sum()
    losses: list[float] = []
    steps: list[float] = []
    converged = False
    for t in range(max_iter + 1):
        residual = operator.forward(left, right) - y
        value, slope = loss_and_slope(residual, loss, delta)
        losses.append(float(shares @ value))
        converged = bool(watch(t, losses[-1], left, right)) or converged
        if t == max_iter or converged or not math.isfinite(losses[-1]):
            break
        D = operator.adjoint(shares * slope)
        move_left, move_right = direction(D, left, right, symmetric)
        eta = step(t, residual, D, weights, symmetric)
        left = left - eta * move_left
        right = left if symmetric else right - eta * move_right
        steps.append(eta)
        converged = bool(eta * move_left.norm() <= tol * left.norm())
    return Descent(left, right, losses, steps, converged)
