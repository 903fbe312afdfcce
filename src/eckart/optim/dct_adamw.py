"""DCT-AdamW: AdamW on the r coordinates of each gradient that are largest in a fixed cosine basis.

    A = G (+ E)      S = A Q      I = the r columns of S of largest norm      a = S[:, I]      E ← A − a Q_Iᵀ
    m, v ← AdamW's moments of a, moved to I      W ← (1 − ηλ) W − η m̂/(√v̂ + ε) Q_Iᵀ

    W (R, C) = (out, in), here R ≥ C; else everything is transposed: S = Qᵀ A, and rows are chosen
    Q (n, n), n = min(R, C)   a, m, v (R, r)   E (R, C), optional   I (r): all that is stored of the subspace

Source: Modoranu et al., "FFT-based Dynamic Subspace Selection for Low-Rank Adaptive Optimization of Large Language
Models", 2025, arXiv:2505.17967.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eckart.linalg.affine8 import Affine8, dequantize8, quantize8
from eckart.optim._adamw import Adam, adam_direction
from eckart.optim._base import Entry, LowRankOptimizer, Params, largest, select, wide
from eckart.optim._basis import Basis, Kind, Transform
from eckart.optim._layout import Layout, local


class DCTAdamW(LowRankOptimizer):
    """AdamW in r columns of a cosine basis, chosen anew for every gradient; what is no matrix gets AdamW itself.

    Which parameters are low-rank: those of two or more dimensions (a convolution's are read as (out, in·k)) whose sides
    are below ``max_shape``, in groups that do not say ``"low_rank": False``.

    Args:
        params: parameters or groups; each option below may be a group's own.
        lr: η.
        rank: r, at most every low-rank parameter's shorter side.
        rank_ratio: instead of ``rank``, a share of each parameter's shorter side, in (0, 1].
        betas: β₁ and β₂. A direction that is new starts from zero moments while t is large: its first step is
            (1 − β₁)/√(1 − β₂) times η, 3.2 with β₂ = 0.999 and 0.45 with 0.95.
        eps: ε.
        weight_decay: λ.
        basis: ``"dct3"`` (the columns of Q₀, the authors' product) or ``"dct2"`` (its rows, the authors' FFT); for
            comparison ``"random_qr"``, a random orthogonal matrix.
        transform: A Q by the ``"fft"`` or by ``"matmul"``; ``"auto"`` takes the quicker. Both give the same numbers.
        norm: columns are chosen by their ℓ1 or ℓ2 norm. With 2 no other r columns hold more of A, and at least the
            share r/n of ‖A‖² is held.
        weighted: multiply the norm by ‖q_j‖ of the same kind.
        update_gap: choose columns at steps 1 and k · update_gap.
        error_feedback: add what a step left out to the next gradient: kept in ``"full"`` or in ``"int8"``.
        rotate: a coordinate that stays chosen keeps its moments and a new one starts from zero. False: the moments stay
            in their places while the basis under them changes; only for a large ``update_gap``.
        max_shape: parameters with a side of at least this (embeddings, output heads) get AdamW.
        compile: compile the updates by torch.compile; None: of parameters on an accelerator.

    Raises:
        InputError: an option out of its range, a rank above a parameter's shorter side, a parameter given twice.

    Source: Modoranu et al., 2025, arXiv:2505.17967. ``"random_qr"``, ℓ2 with ``dct2`` and ``rank_ratio`` are ours.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        rank: int | None = None,
        *,
        rank_ratio: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        basis: Kind = "dct3",
        transform: Transform = "auto",
        norm: Literal[1, 2] = 1,
        weighted: bool = False,
        update_gap: int = 1,
        error_feedback: Literal["full", "int8"] | None = None,
        rotate: bool = True,
        max_shape: int = 32_000,
        compile: bool | None = None,
    ) -> None:
        super().__init__(params, locals())

    def entries(self, group: dict[str, Any], p: Tensor) -> dict[str, Entry]:
        """Moments of r coordinates, their indices, and what error feedback keeps."""
        layout, r, kind = Layout.of(p), self.rank_of(group, p), wide(p)
        moments = (r, layout.columns) if layout.left else (layout.rows, r)
        state = {
            "m": Entry(moments, kind, by_rows=True),
            "v": Entry(moments, kind, by_rows=True),
            "indices": Entry((r,), torch.int32),
        }
        if group["error_feedback"] is not None:
            packed = group["error_feedback"] == "int8"
            shape = (layout.rows, layout.columns)
            state["ef"] = Entry(shape, torch.uint8 if packed else kind, by_rows=True)
            if packed:
                row = Entry((layout.rows, 1), kind, by_rows=not layout.left)
                state |= {"ef_low": row, "ef_scale": row}
        return state

    def update(self, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> Float[Tensor, "m n"]:
        """m̂/(√v̂ + ε) Q_Iᵀ."""
        layout, basis, step = Layout.of(p), self.basis(group, p), int(state["step"])
        assert p.grad is not None
        a = layout.matrix(p.grad).to(wide(p))
        if group["error_feedback"] is not None:
            a = a + self._fed_back(layout, state)
        previous = state["indices"].long()
        if step == 1 or step % group["update_gap"] == 0:
            scores, energy = self.run(select, p)(a, basis, group["norm"], group["weighted"])
            indices = largest(layout.reduced(energy), len(previous))
            state["indices"].copy_(indices)
            coordinates = scores[:, indices]
            moved = group["rotate"] and step > 1
        else:
            indices, coordinates, moved = previous, basis.project(a, previous), False
        m, v = (local(state[name]).mT if layout.left else local(state[name]) for name in ("m", "v"))
        if layout.left:  # in memory as the moments are
            coordinates = coordinates.mT.contiguous().mT
        if moved:
            self.run(move, p)(m, previous, indices)
            self.run(move, p)(v, previous, indices)
        if group["error_feedback"] is not None:
            self._feed_back(layout, state, a - basis.back(coordinates, indices))
        adam = Adam.at(group, step)
        direction: Tensor = self.run(projected_update, p)(coordinates, indices, m, v, adam, basis)
        return direction

    def _fed_back(self, layout: Layout, state: dict[str, Any]) -> Float[Tensor, "m n"]:
        lost = local(state["ef"])
        if "ef_low" in state:
            lost = dequantize8(Affine8(lost, local(state["ef_low"]), local(state["ef_scale"])))
        return lost.mT if layout.left else lost

    def _feed_back(self, layout: Layout, state: dict[str, Any], lost: Float[Tensor, "m n"]) -> None:
        lost = lost.mT if layout.left else lost
        if "ef_low" not in state:
            local(state["ef"]).copy_(lost)
            return
        low, high = lost.amin(1, keepdim=True), lost.amax(1, keepdim=True)
        if layout.left:  # a row of P lies in several processes
            low, high = layout.reduced(low, "min"), layout.reduced(high, "max")
        for name, value in zip(("ef", "ef_low", "ef_scale"), quantize8(lost, low, high), strict=True):
            local(state[name]).copy_(value)


def move(moment: Float[Tensor, "m r"], previous: Int[Tensor, " r"], indices: Int[Tensor, " r"]) -> None:
    """A moment's columns from the old coordinates to the new ones, in place; zero where a coordinate is new.

    This is moment @ (Q[:, previous]ᵀ Q[:, indices]), for the columns of Q are orthonormal.

    Args:
        moment: a column for each old coordinate.
        previous: rising.
        indices: rising.
    """
    place = torch.searchsorted(previous, indices).clamp(max=len(previous) - 1)
    moment.copy_(torch.where(previous[place] == indices, moment.index_select(1, place), 0))


def projected_update(
    a: Float[Tensor, "m r"],
    indices: Int[Tensor, " r"],
    m: Float[Tensor, "m r"],
    v: Float[Tensor, "m r"],
    adam: Adam,
    basis: Basis,
) -> Float[Tensor, "m n"]:
    """AdamW's direction of the coordinates, in the whole space; moments in place."""
    return basis.back(adam_direction(a, m, v, adam), indices)
