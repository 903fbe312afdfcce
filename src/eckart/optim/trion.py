"""Trion: Muon whose orthogonalisation sees only r coordinates of the momentum in a fixed cosine basis.

    B = M + G      S = B Q      I = the r columns of S of largest norm      b = S[:, I]
    M ← B − (1 − μ) b Q_Iᵀ      W ← (1 − ηλ) W − η s NS(b) Q_Iᵀ

    W, M, B (R, C) = (out, in), here R ≥ C, else transposed   b (R, r)   NS: five Newton–Schulz steps towards U Vᵀ

Source: Modoranu et al., 2025, arXiv:2505.17967; Newton–Schulz coefficients: Jordan, "Muon", 2024.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eckart.optim._base import Entry, LowRankOptimizer, Params, largest, select, wide
from eckart.optim._basis import Basis, Kind, Transform
from eckart.optim._layout import Layout, local

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of the Newton–Schulz step: singular values between about 0.003 and 1 end between 0.6 and 1.3 after five."""
_TOGETHER = 5
"""Steps made on one XᵀX: rounding leaves it eigenvalues below zero, which grow twelvefold in each."""
_SCALES = {
    "kj": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "none": lambda rows, columns: 1.0,
    "kimi": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "dion": lambda rows, columns: math.sqrt(rows / columns),
}


class Trion(LowRankOptimizer):
    """Orthogonalised momentum of rank r, its subspace chosen from a cosine basis; what is no matrix gets AdamW.

    For hidden weights: put embeddings and the output head into a group with ``"low_rank": False``, see `hidden_groups`.

    Args:
        params: parameters or groups; each option below may be a group's own.
        lr: η.
        rank: r, at most every low-rank parameter's shorter side.
        rank_ratio: instead of ``rank``, a share of each parameter's shorter side, in (0, 1].
        momentum: μ. What of the momentum lies outside the subspace is kept whole, as error feedback.
        weight_decay: λ.
        scale: s: ``"kj"`` √max(1, R/C) (the paper's), ``"none"`` 1, ``"kimi"`` 0.2 √max(R, C), ``"dion"`` √(R/C).
        ns_steps: Newton–Schulz steps.
        basis, transform, norm, weighted, max_shape, compile: as in `DCTAdamW`.
        adamw_scale: what is left to AdamW learns at this times η.
        betas, eps: of that AdamW.

    Raises:
        InputError: an option out of its range, a rank above a parameter's shorter side, a parameter given twice.

    Source: Modoranu et al., 2025, arXiv:2505.17967.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 0.01,
        rank: int | None = None,
        *,
        rank_ratio: float | None = None,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        scale: Literal["kj", "none", "kimi", "dion"] = "kj",
        ns_steps: int = 5,
        basis: Kind = "dct3",
        transform: Transform = "auto",
        norm: Literal[1, 2] = 1,
        weighted: bool = False,
        max_shape: int = 32_000,
        adamw_scale: float = 0.03,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-10,
        compile: bool | None = None,
    ) -> None:
        super().__init__(params, locals())

    def entries(self, group: dict[str, Any], p: Tensor) -> dict[str, Entry]:
        """The momentum and the indices."""
        layout = Layout.of(p)
        return {
            "momentum_buffer": Entry((layout.rows, layout.columns), wide(p), by_rows=True),
            "indices": Entry((self.rank_of(group, p),), torch.int32),
        }

    def rate(self, group: dict[str, Any], p: Tensor) -> Any:
        """η, or AdamW's share of it."""
        return group["lr"] * (1 if self.is_low_rank(group, p) else group["adamw_scale"])

    def update(self, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> Float[Tensor, "m n"]:
        """s NS(b) Q_Iᵀ."""
        layout, basis = Layout.of(p), self.basis(group, p)
        assert p.grad is not None
        momentum = local(state["momentum_buffer"])
        momentum = momentum.mT if layout.left else momentum
        momentum.add_(layout.matrix(p.grad))
        scores, energy = self.run(select, p)(momentum, basis, group["norm"], group["weighted"])
        indices = largest(layout.reduced(energy), state["indices"].numel())
        state["indices"].copy_(indices)
        b = scores[:, indices]
        self.run(forget, p)(momentum, b, indices, basis, 1 - group["momentum"])
        o = layout.scattered(self.run(newton_schulz, p)(layout.gathered(b), group["ns_steps"]))
        scale: float = _SCALES[group["scale"]](layout.rows, layout.columns)
        return basis.back(o, indices) * scale


def forget(
    momentum: Float[Tensor, "m n"],
    b: Float[Tensor, "m r"],
    indices: Int[Tensor, " r"],
    basis: Basis,
    share: float,
) -> None:
    """Take this share of what lies in the subspace out of the momentum, in place."""
    momentum.sub_(basis.back(b, indices), alpha=share)


def newton_schulz(b: Float[Tensor, "m r"], steps: int) -> Float[Tensor, "m r"]:
    """About U Vᵀ of b = U Σ Vᵀ: X = b/(‖b‖_F + 1e-7), then steps times X ← X (a I + b̂ XᵀX + c (XᵀX)²).

    X stays a product X₀ P with a polynomial P of X₀ᵀX₀: the steps are made on matrices of the shorter side, and the
    longer one takes part in two products for every five of them.

    Args:
        b: any matrix; XᵀX is formed along its shorter side.
        steps: five bring singular values of X from [0.003, 1] to [0.6, 1.3].
    """
    x: Tensor = b if b.shape[0] > b.shape[1] else b.mT
    x = x / (torch.linalg.matrix_norm(x) + 1e-7)
    for done in range(0, steps, _TOGETHER):
        x = x @ _polynomial(x.mT @ x, min(_TOGETHER, steps - done))
    return x if b.shape[0] > b.shape[1] else x.mT


def _polynomial(gram: Float[Tensor, "r r"], steps: int) -> Float[Tensor, "r r"]:
    """P with X P = X after these steps, of XᵀX."""
    first, second, third = _QUINTIC
    whole = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for i in range(steps):
        step = second * gram + third * (gram @ gram)
        step.diagonal().add_(first)
        whole = step if i == 0 else whole @ step
        if i + 1 < steps:
            gram = step @ gram @ step
    return whole
