"""Top right singular vectors of a tall matrix that passes once, row by row: pure functions on immutable states.

    block power   W_j = (n/|B_j|) Σ_{i∈B_j light} a_i a_iᵀ Z_{j−1} + (n/seen_j) Σ_{i heavy} a_i a_iᵀ Z_{j−1}
                  Z_j = qr(W_j)
    Oja           v ← v + η a ⟨a, v⟩, normalised, its growth kept as a logarithm; V ← qr(V + η a aᵀV) for several

A chunk of rows is ``X (rows, d)``, dense or sparse COO. Chunks of any size give the same numbers.

Source: Kacham & Woodruff, NeurIPS 2024, arXiv:2412.11963; Oja, 1982; Price & Xun, FOCS 2024, arXiv:2408.10332.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eckart.linalg.operators import row_squares

OJA_ROWS = 64
"""Rows of Oja's rule that one triangular system takes."""


@dataclass(frozen=True)
class HeavyRows:
    """Which rows are kept apart: norm² ≥ ‖A‖_F²/(factor d), or norm ≥ ``norm``; the largest ``most`` of them.

    ‖A‖_F² is extrapolated from the rows so far to ``n`` rows, to twice as many where n is None.
    """

    factor: float = 1.0
    norm: float | None = None
    most: int = 256
    n: int | None = None

    def bound(self, energy: Tensor, seen: Tensor, d: int) -> Tensor:
        """The norm from which a row is heavy, after ``seen`` rows that hold ``energy``."""
        if self.norm is not None:
            return torch.full_like(energy, self.norm)
        rows = 2.0 if self.n is None else self.n / seen
        return (energy * rows / (self.factor * d)).sqrt()


@dataclass(frozen=True)
class BlockState:
    """The block power method between two chunks: (2ℓ + heavy) d numbers, whatever the length of the stream.

    ``energy`` is Σ ‖a_i − shift‖² of all rows, ``light`` that of the light ones of this block, and ``trace`` what the
    last W stands for has on its diagonal: W = T Z, trace T.
    """

    Z: Float[Tensor, "d l"]
    acc: Float[Tensor, "d l"]
    image: Float[Tensor, "d l"]
    heavy: Float[Tensor, "h d"]
    heavy_norm: Float[Tensor, " h"]
    heavy_row: Int[Tensor, " h"]
    shift: Float[Tensor, " d"]
    total: Float[Tensor, " d"]
    rayleigh: Float[Tensor, "p l"]
    energy: float = 0.0
    light: float = 0.0
    trace: float = 0.0
    seen: int = 0
    in_block: int = 0
    block: int = 0


def start_blocks(Z: Float[Tensor, "d l"]) -> BlockState:
    """Before the first row.

    Args:
        Z: orthonormal columns.
    """
    d, columns = Z.shape
    zeros, none = Z.new_zeros(d, columns, dtype=torch.float64), Z.new_zeros(0)
    rows, row = Z.new_zeros(0, dtype=torch.int64), Z.new_zeros(d)
    return BlockState(Z, zeros, Z, Z.new_zeros(0, d), none, rows, row, row, Z.new_zeros(0, columns))


def absorb_rows(state: BlockState, X: Float[Tensor, "c d"], rule: HeavyRows) -> BlockState:
    """Take in rows of the current block: light ones into the sum, heavy ones into the store.

    Args:
        state: the state before them.
        X: rows that all belong to the current block.
        rule: which rows are heavy. Beyond ``rule.most`` the smallest is light after all; one of an earlier block is
            dropped, for this block's sum is of its own rows.
    """
    count, d = X.shape
    square = row_squares(X).double()
    crossed = (X @ state.shift.unsqueeze(1)).squeeze(1).double()
    square = (square - 2 * crossed + state.shift.double().square().sum()).clamp_min(0)
    energy = state.energy + square.cumsum(0)
    seen = state.seen + torch.arange(1, count + 1, device=square.device)
    heavy = square.sqrt() >= rule.bound(energy, seen, d)
    image = X @ state.Z - state.shift @ state.Z
    image[heavy] = 0
    new = heavy.nonzero().squeeze(1)
    state = replace(
        state,
        acc=state.acc + (X.mT @ image) - torch.outer(state.shift, image.sum(0)),
        heavy=torch.cat([state.heavy, _rows(X, new)]),
        heavy_norm=torch.cat([state.heavy_norm, square[new].sqrt().to(state.heavy_norm)]),
        heavy_row=torch.cat([state.heavy_row, state.seen + new]),
        total=state.total + (X.mT @ state.Z.new_ones(count, 1)).squeeze(1),
        energy=float(energy[-1]),
        light=state.light + float(square[~heavy].sum()),
        seen=state.seen + count,
        in_block=state.in_block + count,
    )
    keep = torch.zeros(len(state.heavy), dtype=torch.bool, device=square.device)
    keep[state.heavy_norm.argsort(descending=True, stable=True)[: rule.most]] = True
    return _evict(state, keep)


def close_block(state: BlockState, rule: HeavyRows, centred: bool = False) -> BlockState:
    """End the current block: W, the Rayleigh quotients diag(ZᵀW), and Z of the next one.

    Args:
        state: the state after the last row of the block.
        rule: which rows are still heavy, now that more of ‖A‖_F is known.
        centred: take the mean of all rows so far from the rows of the next block.
    """
    energy = torch.tensor(state.energy, dtype=torch.float64, device=state.heavy.device)
    bound = rule.bound(energy, energy.new_tensor(float(state.seen)), state.Z.shape[0])
    state = _evict(state, state.heavy_norm.double() >= bound * (1 - 1e-12))
    n = rule.n or state.seen
    apart = state.heavy - state.shift
    W = (n / state.in_block) * state.acc + (n / state.seen) * (apart.mT @ (apart @ state.Z)).double()
    W = W.to(state.Z.dtype)
    q, r = torch.linalg.qr(W)
    return replace(
        state,
        Z=q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q),
        image=W,
        acc=torch.zeros_like(state.acc),
        light=0.0,
        trace=n / state.in_block * state.light + n / state.seen * float(apart.double().square().sum()),
        rayleigh=torch.cat([state.rayleigh, (state.Z * W).sum(0, keepdim=True)]),
        shift=state.total / state.seen if centred else state.shift,
        in_block=0,
        block=state.block + 1,
    )


def _evict(state: BlockState, keep: Tensor) -> BlockState:
    if bool(keep.all()):
        return state
    mine = state.heavy[~keep & (state.heavy_row >= state.seen - state.in_block)] - state.shift
    return replace(
        state,
        acc=state.acc + (mine.mT @ (mine @ state.Z)),
        light=state.light + float(mine.double().square().sum()),
        heavy=state.heavy[keep],
        heavy_norm=state.heavy_norm[keep],
        heavy_row=state.heavy_row[keep],
    )


@dataclass(frozen=True)
class OjaState:
    """Oja's rule between two chunks: one vector for each of g rates, or k orthonormal ones that share a rate."""

    V: Float[Tensor, "v d"]
    rates: Float[Tensor, " g"]
    log_growth: Float[Tensor, " v"]
    largest: Float[Tensor, " d"]
    energy: float = 0.0
    seen: int = 0


def start_oja(Z: Float[Tensor, "d k"], rates: Float[Tensor, " g"]) -> OjaState:
    """Before the first row: every rate from the one column of ``Z``, or one rate from the span of several."""
    V = (Z / Z.norm() if Z.shape[1] == 1 else torch.linalg.qr(Z).Q).mT
    V = V.expand(max(len(rates), len(V)), -1).clone()
    return OjaState(V, rates.to(V), V.new_zeros(len(V), dtype=torch.float64), torch.zeros_like(V[0]))


def absorb_oja(state: OjaState, X: Float[Tensor, "c d"]) -> OjaState:
    """Apply Oja's rule to each row in order, as one triangular system for up to `OJA_ROWS` rows.

    Unnormalised, v_t = v_0 + Σ_{i≤t} c_i a_i with c_t = η ⟨a_t, v_{t−1}⟩, so that (I − η tril(X Xᵀ, −1)) c = η X v_0.
    Orthonormal vectors may wait for their QR until then: it is that of the product of all steps.
    """
    square = row_squares(X).double()
    step = torch.log1p(float(state.rates.max()) * square).cumsum(0)
    together, limits = len(state.V) > len(state.rates), torch.finfo(state.V.dtype)
    # Growth before a number would overflow, or before vectors that grow together would lose a quarter of their digits.
    room = -0.25 * math.log(limits.eps) if together else 0.4 * math.log(limits.max)
    V, growth, largest = state.V, state.log_growth, state.largest
    start = 0
    while start < len(square):
        begun = float(step[start - 1]) if start else 0.0
        fits = int(torch.searchsorted(step[start : start + OJA_ROWS], begun + room))
        rows = _rows(X, torch.arange(start, start + max(fits, 1), device=square.device))
        system = -state.rates[:, None, None] * (rows @ rows.mT).tril(-1)
        right = (state.rates[:, None] * (V @ rows.mT)).unsqueeze(2)
        c = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True).squeeze(2)
        V = V + c @ rows
        if together:
            q, r = torch.linalg.qr(V.mT)
            V, norms = (q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)).mT, r.diagonal().abs()
        else:
            norms = V.norm(dim=1)
            V = V / norms[:, None]
        growth = growth + norms.double().log()
        start += len(rows)
    top = _rows(X, square.argmax().reshape(1)).squeeze(0)
    if top.norm() > largest.norm():
        largest = top
    return replace(
        state,
        V=V,
        log_growth=growth,
        largest=largest,
        energy=state.energy + float(square.sum()),
        seen=state.seen + len(square),
    )


def grown_enough(state: OjaState, constant: float = 1.0) -> int:
    """Index of the smallest rate whose log growth is at least ``constant`` · ln d; −1 where there is none."""
    order = state.rates.argsort()
    passed = (state.log_growth[order] >= constant * math.log(state.V.shape[1])).nonzero()
    return int(order[passed[0]]) if len(passed) else -1


def _rows(X: Tensor, index: Tensor) -> Tensor:
    picked = X.index_select(0, index)
    return picked.to_dense() if picked.is_sparse else picked
