"""Gradient descent on the factors of a matrix that is measured linearly: pure functions.

    E = Σ_i w_i (⟨A_i, F Gᵀ⟩ − y_i) A_i        F ← F − η E G,  G ← G − η Eᵀ F        X ← X − η sym(E) X

Source: Xiong, Ding & Du, ICLR 2024, arXiv:2310.01769.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.linalg.operators import Operator


class FactoredDescent(NamedTuple):
    """Where a descent ended, and its course: one loss more than steps. ``switch`` is the step of the re-factoring."""

    F: Float[Tensor, "n1 k"]
    G: Float[Tensor, "n2 k"]
    losses: list[float]
    switch: int | None
    converged: bool


@dataclass(frozen=True)
class Switch:
    """When and how to re-factor: at step ``at``, or once the loss is below ``tol`` times that of the zero matrix."""

    tol: float = 1e-3
    beta: float | None = None
    at: int | None = None

    def due(self, t: int, loss: float, loss_of_zero: float) -> bool:
        return loss <= self.tol * loss_of_zero if self.at is None else t == self.at


def gradient(
    operator: Operator,
    residual: Float[Tensor, " m"],
    weights: Float[Tensor, " m"],
    F: Float[Tensor, "n1 k"],
    G: Float[Tensor, "n2 k"] | None = None,
) -> tuple[Float[Tensor, "n1 k"], Float[Tensor, "n2 k"]]:
    """(E G, Eᵀ F), or sym(E) F twice where G is None: half the gradient of ½ Σ w ρ² in that symmetric case."""
    E = operator.adjoint(weights * residual)
    if G is None:
        step = (E @ F + E.mT @ F) / 2
        return step, step
    return E @ G, E.mT @ F


def core_svd(
    F: Float[Tensor, "n1 k"], G: Float[Tensor, "n2 k"]
) -> tuple[Float[Tensor, "n1 k"], Float[Tensor, " k"], Float[Tensor, "k n2"]]:
    """Thin SVD of F Gᵀ in O((n1 + n2) k²)."""
    q, r = torch.linalg.qr(F)
    p, s = torch.linalg.qr(G)
    u, sigma, vh = torch.linalg.svd(r @ s.mT, full_matrices=False)
    return q @ u, sigma, vh @ p.mT


def imbalance(F: Float[Tensor, "n1 k"], G: Float[Tensor, "n2 k"]) -> Float[Tensor, "k k"]:
    """FᵀF − GᵀG, which gradient flow conserves."""
    return F.mT @ F - G.mT @ G


def refactor(
    F: Float[Tensor, "n1 k"], G: Float[Tensor, "n2 k"], beta: float | None = None, error: float = 0.0
) -> tuple[Float[Tensor, "n1 k"], Float[Tensor, "n2 k"]]:
    """The same product with FᵀF = β² I: F = P S Qᵀ gives F̃ = β P and G̃ = G Q S/β.

    Args:
        F: at most as many columns as rows.
        G: the other factor.
        beta: β; None takes √σ_r̂ of F Gᵀ, with r̂ the number of singular values above 1 % of the largest and ``error``.
        error: about how far F Gᵀ is from its target: what is smaller may be a spare direction.

    Source: a reconstruction of the paper's modification from the properties it claims.
    """
    if beta is None:
        sigma = core_svd(F, G)[1]
        clear = sigma[sigma > max(1e-2 * float(sigma[0]), min(error, 0.9 * float(sigma[0])))]
        beta = float(clear[-1].sqrt()) if len(clear) else 1.0
    p, s, qh = torch.linalg.svd(F, full_matrices=False)
    return beta * p, G @ qh.mT * (s / beta)


def factored_descent(
    operator: Operator,
    y: Float[Tensor, " m"],
    F: Float[Tensor, "n1 k"],
    G: Float[Tensor, "n2 k"] | None = None,
    *,
    weights: Float[Tensor, " m"] | None = None,
    eta: float,
    careful: bool = False,
    switch: Switch | None = None,
    momentum: float = 0.0,
    max_iter: int = 1000,
    tol: float = 0.0,
    watch: Callable[[int, float, Tensor, Tensor], None] = lambda *_: None,
) -> FactoredDescent:
    """Descend on ½ Σ w (⟨A_i, F Gᵀ⟩ − y_i)² from (F, G), or on F Fᵀ where G is None; both factors move at once.

    Args:
        operator: the measurements.
        y: what was measured.
        F: left factor at the start.
        G: right factor at the start; None for the symmetric model.
        weights: w; 1/m where None.
        eta: η.
        careful: halve η as long as the loss would rise, and bound it by the factors after re-factoring.
        switch: when to re-factor, if ever; not for the symmetric model.
        momentum: share of the last move added to the next.
        max_iter: steps at most.
        tol: end when a step is shorter than this share of the factors. A loss that is no number ends it too.
        watch: called with t, the loss and the factors at t = 0 … , after the re-factoring.
    """
    shares = torch.full_like(y, 1 / y.numel()) if weights is None else weights
    loss_of_zero = float(shares @ y.square()) / 2
    floor = max(tol, torch.finfo(y.dtype).eps) if careful else tol

    def measure(F: Tensor, G: Tensor | None) -> tuple[Tensor, float]:
        residual = operator.forward(F, F if G is None else G) - y
        return residual, float(shares @ residual.square()) / 2

    losses: list[float] = []
    switched, converged, velocity = None, False, None
    residual, loss = measure(F, G)
    for t in range(max_iter + 1):
        losses.append(loss)
        if switch and G is not None and switched is None and switch.due(t, loss, loss_of_zero):
            error = math.sqrt(loss / loss_of_zero) * float(core_svd(F, G)[1].norm()) if loss_of_zero else 0.0
            F, G = refactor(F, G, switch.beta, error)
            switched, velocity = t, None
            if careful:
                eta = min(eta, 0.5 / float(max(torch.linalg.matrix_norm(x, 2).square() for x in (F, G))))
        watch(t, loss, F, F if G is None else G)
        if t == max_iter or converged or not math.isfinite(loss):
            break
        left, right = gradient(operator, residual, shares, F, G)
        if momentum and velocity is not None:
            left, right = left + momentum * velocity[0], right + momentum * velocity[1]
        velocity = left, right
        length = float(left.norm().hypot(right.norm()))
        bound = floor * float(F.norm().hypot((F if G is None else G).norm()))
        while True:
            F1, G1 = F - eta * left, None if G is None else G - eta * right
            residual, new = measure(F1, G1)
            if not careful or momentum or new <= loss * (1 + 1e-9) or not eta * length > bound:
                break
            eta /= 2
        F, G, loss, converged = F1, G1, new, eta * length <= bound
    return FactoredDescent(F, F if G is None else G, losses, switched, converged)
