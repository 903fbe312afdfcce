"""GaLore: AdamW on each gradient's coordinates in its own leading singular vectors, found anew now and then.

    every T steps  P = the r leading right singular vectors of G        a = G P
    m, v ← AdamW's moments of a        W ← (1 − ηλ) W − η α m̂/(√v̂ + ε) Pᵀ

    W, G (R, C) = (out, in), here R ≥ C, else left singular vectors   P (C, r)   a, m, v (R, r)

Source: Zhao et al., "GaLore", ICML 2024, arXiv:2403.03507.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.optim._adamw import Adam, adam_direction
from eckart.optim._base import Entry, LowRankOptimizer, Params, wide
from eckart.optim._layout import Layout, local


class GaLore(LowRankOptimizer):
    """AdamW in the leading singular vectors of a gradient; what is no matrix gets AdamW itself.

    The baseline that `DCTAdamW` is measured against: a decomposition at every update of the subspace, and a stored
    projector. As its authors do, it leaves the moments in their places when the vectors under them change.

    Args:
        params: parameters or groups; each option below may be a group's own.
        lr: η.
        rank: r, at most every low-rank parameter's shorter side.
        rank_ratio: instead of ``rank``, a share of each parameter's shorter side, in (0, 1].
        betas, eps, weight_decay: β₁ and β₂, ε, λ.
        update_gap: T: new vectors at steps 1 and k · update_gap.
        galore_scale: α.
        max_shape, compile: as in `DCTAdamW`.

    Raises:
        InputError: an option out of its range, a rank above a parameter's shorter side, a parameter given twice.

    Source: Zhao et al., 2024, arXiv:2403.03507.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 0.01,
        rank: int | None = None,
        *,
        rank_ratio: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        update_gap: int = 200,
        galore_scale: float = 0.25,
        max_shape: int = 32_000,
        compile: bool | None = None,
    ) -> None:
        super().__init__(params, locals())

    def entries(self, group: dict[str, Any], p: Tensor) -> dict[str, Entry]:
        """Moments of r coordinates, and the projector."""
        layout, r, kind = Layout.of(p), self.rank_of(group, p), wide(p)
        moments = Entry((r, layout.columns) if layout.left else (layout.rows, r), kind, by_rows=True)
        return {"m": moments, "v": moments, "projector": Entry((layout.n, r), kind)}

    def update(self, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> Float[Tensor, "m n"]:
        """α m̂/(√v̂ + ε) Pᵀ."""
        layout, step = Layout.of(p), int(state["step"])
        assert p.grad is not None
        g = layout.matrix(p.grad).to(wide(p))
        projector = state["projector"]
        if step == 1 or step % group["update_gap"] == 0:
            vh = torch.linalg.svd(layout.gathered(g), full_matrices=False).Vh
            projector.copy_(vh[: projector.shape[1]].mT)
        m, v = (local(state[name]).mT if layout.left else local(state[name]) for name in ("m", "v"))
        direction: Tensor = self.run(adam_direction, p)(g @ projector, m, v, Adam.at(group, step))
        scale: float = group["galore_scale"]
        update: Tensor = (direction @ projector.mT) * scale
        return update
