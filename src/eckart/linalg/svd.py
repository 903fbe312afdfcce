"""A singular value decomposition that two machines agree on: pure functions."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eckart.linalg.spectrum import SVD

CLUSTER_GAP = 1e-8
"""Neighbouring singular values closer than this share of the largest count as equal."""
LEAST_LEADING = 1e-3
"""Down to this share of the largest, a singular value's vectors are as exact from a Gram matrix as float32 can tell."""
LEAST_TRAILING = 1e-10
"""Below this share of the largest, a singular value's vectors are not found beside a Gram matrix."""
DIGEST_UNIT = 2.0**-16
"""Resolution of `basis_digest`."""
DIGEST_TOLERANCE = 8
"""Digests of one basis, computed anywhere in float64, differ by less than this many units."""


def canonical_svd(matrix: Float[Tensor, "m n"]) -> SVD:
    """Thin SVD M = U diag(S) Vh in float64 whose U and Vh depend on M alone, not on the library that computed them.

    Args:
        matrix: any real matrix without NaN or Inf.
    """
    tall, turned = _tall(matrix)
    u, s, vh = torch.linalg.svd(tall, full_matrices=False)
    return canonicalize(SVD(vh.mT, s, u.mT) if turned else SVD(u, s, vh))


def leading_svd(matrix: Float[Tensor, "m n"], r: int) -> SVD:
    """The r leading triples of `canonical_svd`, to single precision where the matrix has no more.

    A matrix that is not in float64 is decomposed by the eigenvectors of its smaller Gram matrix, in half the time on a
    CPU. These blur values below `LEAST_LEADING` · S_1, which are decomposed on their own, where they are a quarter of
    all at most and none is below `LEAST_TRAILING` · S_1.

    Args:
        matrix: any real matrix without NaN or Inf.
        r: at most min(m, n).
    """
    found = None if matrix.dtype == torch.float64 else _by_gram(matrix, r)
    svd = canonical_svd(matrix) if found is None else canonicalize(found)
    return SVD(svd.U[:, :r], svd.S[:r], svd.Vh[:r])


def _tall(matrix: Float[Tensor, "m n"]) -> tuple[Tensor, bool]:
    """The matrix in float64 with no more columns than rows, and whether it was turned for that."""
    wide = matrix.cpu().double() if matrix.device.type == "mps" else matrix.double()
    turned = wide.shape[0] < wide.shape[1]
    return wide.mT if turned else wide, turned


def _by_gram(matrix: Float[Tensor, "m n"], r: int) -> SVD | None:
    """The leading triples, r and what is as large as the last of them, or all; None where too many are too small."""
    tall, turned = _tall(matrix)
    values, vectors = torch.linalg.eigh(tall.mT @ tall)
    sizes, v = values.flip(0).clamp(min=0).sqrt().tolist(), vectors.flip(1)
    last, count = r, len(sizes)
    while last < count and sizes[last - 1] - sizes[last] <= CLUSTER_GAP * sizes[0]:
        last += 1
    clear = sum(size > LEAST_LEADING * sizes[0] for size in sizes)
    if clear < last and 4 * (count - clear) > count:
        return None
    u = tall @ v[:, : min(last, clear)]
    s = torch.linalg.vector_norm(u, dim=0)
    u, v, rest = u / s, v[:, : min(last, clear)], v[:, clear:]
    if clear < last:
        left = tall @ rest
        p, small, qh = torch.linalg.svd(left - u @ (u.mT @ left), full_matrices=False)
        if not small[-1] > LEAST_TRAILING * s[0]:
            return None
        u, s, v = torch.cat([u, p], 1), torch.cat([s, small]), torch.cat([v, rest @ qh.mT], 1)
    return SVD(v, s, u.mT) if turned else SVD(u, s, v.mT)


def canonicalize(svd: SVD) -> SVD:
    """Fix what an SVD leaves free: the signs of vectors, and the bases of equal singular values.

    The basis of a cluster of equal values is the Gram–Schmidt basis of a fixed random matrix projected on the
    cluster's space, Q R = U_cᵀ Ω with diag(R) > 0, U_c ← U_c Q, V_c ← V_c Q: a function of the space alone. For a
    simple value that is a sign. For the value zero, U_c and V_c are free of each other and each gets its own Q.

    Args:
        svd: S in falling order. A gap of at most `CLUSTER_GAP` · S_1 counts as none.
    """
    u, s, vh = (t.clone() for t in svd)
    if s.numel() == 0:
        return SVD(u, s, vh)
    probe_u, probe_v = _probe(u.shape[0], u), _probe(vh.shape[1], u)
    null = s <= CLUSTER_GAP * s[0]
    sign_u, sign_v = _signs(probe_u @ u), _signs(vh @ probe_v)
    u *= sign_u
    vh *= torch.where(null, sign_v, sign_u).unsqueeze(1)
    together = ((s[:-1] - s[1:]) <= CLUSTER_GAP * s[0]).tolist()
    start = 0
    for end in range(1, s.numel() + 1):
        if end < s.numel() and together[end - 1]:
            continue
        if end - start > 1:
            columns = slice(start, end)
            q = _rotation(u[:, columns])
            u[:, columns] = u[:, columns] @ q
            vh[columns] = (_rotation(vh[columns].mT) if bool(null[start]) else q).mT @ vh[columns]
        start = end
    return SVD(u, s, vh)


def basis_digest(u: Float[Tensor, "m k"], vh: Float[Tensor, "k n"]) -> Int[Tensor, " 2"]:
    """Two numbers that change when a singular vector turns or changes its sign: random linear forms of U and of Vh,
    in units of `DIGEST_UNIT`, as int32 (which no cast of a model to a shorter float touches).

    Args:
        u: left singular vectors, float64.
        vh: right singular vectors, float64.
    """
    weights = _probe(u.shape[1], u, 1)
    forms = torch.stack([_probe(u.shape[0], u) @ u @ weights, weights @ vh @ _probe(vh.shape[1], u)])
    return (forms / DIGEST_UNIT).round().to(torch.int32)


def rank_for_energy(
    s: Float[Tensor, " k"], share: float, norm: Literal["squared", "nuclear"] = "squared"
) -> int:
    """Smallest r whose leading values hold a share of the whole: Σ_{i≤r} S_i^p ≥ share · Σ_i S_i^p, at least 1.

    Args:
        s: singular values in falling order.
        share: in (0, 1].
        norm: p = 2 ("squared", the Frobenius energy) or p = 1 ("nuclear").
    """
    parts = s.double().square() if norm == "squared" else s.double()
    held = parts.cumsum(0) / parts.sum()
    return min(int((held < share).sum()) + 1, s.numel())


def _probe(size: int, like: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, dtype=torch.float64, generator=generator).to(like)


def _signs(values: Tensor) -> Tensor:
    return torch.where(values < 0, -1.0, 1.0).to(values)


def _rotation(basis: Float[Tensor, "m c"]) -> Float[Tensor, "c c"]:
    generator = torch.Generator().manual_seed(2)
    probe = torch.randn(*basis.shape, dtype=torch.float64, generator=generator).to(basis)
    q, r = torch.linalg.qr(basis.mT @ probe)
    rotation: Tensor = q * _signs(r.diagonal())
    return rotation
