"""A running sum of low-rank products, Σ w_k B_k A_k, in memory that does not grow with the number of terms.

Factors are stacked, (out, R) and (R, in), for as long as that takes less room than the matrix itself; from then on the
sum is dense. Both are exact, and everything asked of the sum is the same of both.
"""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.linalg.spectrum import SVD

DTYPE = torch.float64
"""What sums are kept in, so that the order of the terms leaves no mark in the float32 that is sent."""


class ProductSum:
    """Σ w_k B_k A_k (out, in), exact.

    Args:
        out: rows.
        inner: columns.
        stack: keep the factors stacked whatever room they take, for FLoRA, which sends them.
    """

    def __init__(self, out: int, inner: int, stack: bool = False) -> None:
        self.out, self.inner, self.stack = out, inner, stack
        self._b: list[Float[Tensor, "out r"]] = []
        self._a: list[Float[Tensor, "r in"]] = []
        self._matrix: Float[Tensor, "out in"] | None = None

    @classmethod
    def of(cls, b: Float[Tensor, "out r"], a: Float[Tensor, "r in"], weight: float = 1.0) -> ProductSum:
        """The sum of one product."""
        total = cls(b.shape[0], a.shape[1])
        total.add(b, a, weight)
        return total

    @property
    def stacked_rank(self) -> int:
        """Columns of the stacked factors; 0 once the sum is dense."""
        return sum(a.shape[0] for a in self._a)

    @property
    def numbers(self) -> int:
        """How many numbers are held."""
        return self.stacked_rank * (self.out + self.inner) if self._matrix is None else self.out * self.inner

    def add(self, b: Float[Tensor, "out r"], a: Float[Tensor, "r in"], weight: float = 1.0) -> None:
        """Add w B A; the weight goes to A alone."""
        b, a = b.to(DTYPE), a.to(DTYPE) * weight
        if self._matrix is not None:
            self._matrix.addmm_(b, a)
            return
        self._b.append(b)
        self._a.append(a)
        if not self.stack and self.stacked_rank * (self.out + self.inner) >= self.out * self.inner:
            self._matrix = torch.cat(self._b, 1) @ torch.cat(self._a)
            self._b, self._a = [], []

    def merge(self, other: ProductSum, weight: float = 1.0) -> None:
        """Add w times another sum."""
        if other._matrix is None:
            for b, a in zip(other._b, other._a, strict=True):
                self.add(b, a, weight)
        else:
            self._matrix = self.dense().add(other._matrix, alpha=weight)
            self._b, self._a = [], []

    def scaled(self, weight: float) -> ProductSum:
        """w times this sum; this one stays as it is."""
        total = ProductSum(self.out, self.inner, self.stack)
        total.merge(self, weight)
        return total

    def stacks(self) -> tuple[Float[Tensor, "out R"], Float[Tensor, "R in"]]:
        """Factors B, A with B A = the sum: the stacks, or √ of the singular values in each once it is dense."""
        if self._matrix is None:
            empty = torch.zeros(self.out, 0, dtype=DTYPE), torch.zeros(0, self.inner, dtype=DTYPE)
            return torch.cat([empty[0], *self._b], 1), torch.cat([empty[1], *self._a])
        u, s, vh = self.svd()
        return u * s.sqrt(), s.sqrt()[:, None] * vh

    def mixed_stacks(self) -> tuple[Float[Tensor, "out R"], Float[Tensor, "R in"]]:
        """The stacks turned so that no column is one term's: B Q, Qᵀ A, Q orthogonal and drawn from B itself, so that
        who is sent them cannot turn them back."""
        b, a = self.stacks()
        digest = hashlib.sha256(b.contiguous().numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        q = torch.linalg.qr(torch.randn(b.shape[1], b.shape[1], generator=generator, dtype=DTYPE)).Q
        return b @ q, q.mT @ a

    def dense(self) -> Float[Tensor, "out in"]:
        """The matrix itself."""
        if self._matrix is not None:
            return self._matrix
        b, a = self.stacks()
        return b @ a

    def times(self, x: Float[Tensor, "in r"]) -> Float[Tensor, "out r"]:
        """ΔW X."""
        if self._matrix is not None:
            return self._matrix @ x
        b, a = self.stacks()
        return b @ (a @ x)

    def transposed_times(self, y: Float[Tensor, "out r"]) -> Float[Tensor, "in r"]:
        """ΔWᵀ Y."""
        if self._matrix is not None:
            return self._matrix.mT @ y
        b, a = self.stacks()
        return a.mT @ (b.mT @ y)

    def column_norms(self) -> Float[Tensor, " in"]:
        """‖ΔW[:, j]‖ of every column."""
        if self._matrix is not None:
            core = self._matrix
        else:
            b, a = self.stacks()
            core = torch.linalg.qr(b, mode="r").R @ a
        norms: Tensor = torch.linalg.vector_norm(core, dim=0)
        return norms

    def norm(self) -> float:
        """‖ΔW‖_F."""
        return float(self.column_norms().norm())

    def svd(self) -> SVD:
        """The thin SVD; of stacks by the QR of both and the SVD of a core (R, R)."""
        if self._matrix is not None:
            return SVD(*torch.linalg.svd(self._matrix, full_matrices=False))
        b, a = self.stacks()
        qb, rb = torch.linalg.qr(b)
        qa, ra = torch.linalg.qr(a.mT)
        u, s, vh = torch.linalg.svd(rb @ ra.mT, full_matrices=False)
        return SVD(qb @ u, s, vh @ qa.mT)
