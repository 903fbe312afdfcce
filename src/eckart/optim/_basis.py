"""The shared orthogonal basis that the low-rank optimisers choose vectors from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eckart.linalg.dct import dct2, dct3, dct_l1_norms, dct_matrix

Kind = Literal["dct2", "dct3", "random_qr"]
Transform = Literal["auto", "matmul", "fft"]
LARGEST_MATMUL = 2048
"""On an accelerator a product with Q is quicker than the FFT up to about this size [the paper's measurement]."""


@dataclass(frozen=True)
class Basis:
    """An orthogonal Q (n, n) whose columns q_j are the basis vectors, as a matrix or as a fast transform.

    It follows from its kind and size alone and is never saved.

    Attributes:
        kind: ``"dct2"`` (columns of Q₀ᵀ), ``"dct3"`` (columns of Q₀, see `eckart.linalg.dct`) or ``"random_qr"``.
        n: its size.
        matrix: Q, or None where the FFT is used.
        l1_norms: ‖q_j‖₁.
    """

    kind: Kind
    n: int
    matrix: Float[Tensor, "n n"] | None
    l1_norms: Float[Tensor, " n"]

    def scores(self, x: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """x Q: every row's coordinate along every basis vector."""
        if self.matrix is not None:
            return x @ self.matrix
        transformed: Tensor = (dct2 if self.kind == "dct2" else dct3)(x)
        return transformed

    def project(self, x: Float[Tensor, "m n"], indices: Int[Tensor, " r"]) -> Float[Tensor, "m r"]:
        """x Q[:, I]."""
        if self.matrix is not None:
            return x @ self.matrix[:, indices]
        return self.scores(x)[:, indices]

    def back(self, a: Float[Tensor, "m r"], indices: Int[Tensor, " r"]) -> Float[Tensor, "m n"]:
        """a Q[:, I]ᵀ; with the FFT by the inverse transform, so that nothing (n, n) is formed."""
        if self.matrix is not None:
            return a @ self.matrix[:, indices].mT
        if a.stride(0) == 1:  # whole rows are copied, in memory as they are
            spread = a.new_zeros(self.n, a.shape[0]).index_copy_(0, indices, a.mT).mT
        else:
            spread = a.new_zeros(a.shape[0], self.n).index_copy_(1, indices, a)
        restored: Tensor = (dct3 if self.kind == "dct2" else dct2)(spread)
        return restored


@lru_cache(maxsize=64)
def basis_of(kind: Kind, transform: Transform, n: int, dtype: torch.dtype, device: torch.device) -> Basis:
    """The basis of this kind and size, made once for all layers and optimisers.

    Args:
        kind: as `Basis.kind`.
        transform: ``"auto"`` takes the FFT on a CPU and above `LARGEST_MATMUL`, the product with Q elsewhere.
        n: its size.
        dtype: float32 or float64.
        device: where to make it.
    """
    if kind == "random_qr":
        generator = torch.Generator().manual_seed(n)
        q, r = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
        q = q * r.diagonal().sign()
        return Basis(kind, n, q.to(device, dtype), q.abs().sum(0).to(device, dtype))
    norms = dct_l1_norms(n, "rows" if kind == "dct2" else "columns", dtype, device)
    if transform == "fft" or (transform == "auto" and (device.type == "cpu" or n > LARGEST_MATMUL)):
        return Basis(kind, n, None, norms)
    q0 = dct_matrix(n, dtype, device)
    return Basis(kind, n, (q0.mT if kind == "dct2" else q0).contiguous(), norms)
