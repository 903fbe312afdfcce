"""Linear measurements of a matrix, y_i = ⟨A_i, X⟩, applied to factors so that X itself need not be formed.

An operator has ``shape_in``, the shape of X; ``m``, how many numbers it measures; and

    forward(U, V)       (⟨A_i, U Vᵀ⟩)_i
    adjoint(r)          Σ_i r_i A_i, something with ``@`` and ``.mT``: (d1, d2) itself only where it is the cheap form
    subset(index)       the operator of these measurements alone
    to(dtype, device)   the same in another precision or place
    energy(w)           Σ_i w_i ‖A_i‖_F²: with weights 1/m it tells the size of X from that of y
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eckart.errors import InputError


@runtime_checkable
class Operator(Protocol):
    """What the descent methods ask of a set of measurements."""

    shape_in: tuple[int, int]
    m: int

    def forward(self, U: Float[Tensor, "d1 k"], V: Float[Tensor, "d2 k"]) -> Float[Tensor, " m"]: ...
    def adjoint(self, r: Float[Tensor, " m"]) -> Tensor | OuterSum: ...
    def subset(self, index: Int[Tensor, " s"]) -> Operator: ...
    def to(self, dtype: torch.dtype, device: torch.device) -> Operator: ...
    def energy(self, w: Float[Tensor, " m"]) -> float: ...


@dataclass(frozen=True)
class OuterSum:
    """Σ_i r_i a_i b_iᵀ as its parts: a product with k columns costs O(m (d1 + d2) k)."""

    a: Float[Tensor, "m d1"]
    b: Float[Tensor, "m d2"]
    r: Float[Tensor, " m"]

    def __matmul__(self, V: Float[Tensor, "d2 k"]) -> Float[Tensor, "d1 k"]:
        product: Tensor = self.a.mT @ (self.r.unsqueeze(1) * (self.b @ V))
        return product

    @property
    def mT(self) -> OuterSum:
        return OuterSum(self.b, self.a, self.r)

    def dense(self) -> Float[Tensor, "d1 d2"]:
        """The sum as a matrix: O(d1 d2) memory, O(m d1 d2) time."""
        b = self.b.to_dense() if self.b.is_sparse else self.b
        total: Tensor = self.a.mT @ (self.r.unsqueeze(1) * b)
        return total


class DenseOperator:
    """Measurement matrices as they are, A ``(m, d1, d2)``: m d1 d2 numbers, 2 m d1 d2 multiply–adds a step."""

    def __init__(self, A: Any) -> None:
        A = as_tensor(A)
        if A.dim() != 3 or not A.is_floating_point():
            raise InputError(f"A is {_what(A)}: give measurement matrices of shape (m, d1, d2)")
        _check_finite("A", A)
        self.A = A
        self.m, self.shape_in = A.shape[0], (A.shape[1], A.shape[2])

    def forward(self, U: Float[Tensor, "d1 k"], V: Float[Tensor, "d2 k"]) -> Float[Tensor, " m"]:
        product: Tensor = self.A.flatten(1) @ (U @ V.mT).flatten()
        return product

    def adjoint(self, r: Float[Tensor, " m"]) -> Float[Tensor, "d1 d2"]:
        total: Tensor = (r @ self.A.flatten(1)).view(self.shape_in)
        return total

    def subset(self, index: Int[Tensor, " s"]) -> DenseOperator:
        return DenseOperator(self.A[index])

    def to(self, dtype: torch.dtype, device: torch.device) -> DenseOperator:
        return DenseOperator(self.A.to(device, dtype))

    def energy(self, w: Float[Tensor, " m"]) -> float:
        return float(w @ self.A.square().sum((1, 2)))


class RankOneOperator:
    """y_i = a_iᵀ X b_i for the rows a_i of ``a (m, d1)`` and b_i of ``b (m, d2)``; b = a where it is left out.

    Either may be a scipy sparse matrix; nothing larger than (m, k) is formed.
    """

    def __init__(self, a: Any, b: Any = None) -> None:
        self.a = as_tensor(a)
        self.b = self.a if b is None else as_tensor(b)
        for name, x in (("a", self.a), ("b", self.b)):
            if x.dim() != 2 or not x.is_floating_point():
                raise InputError(f"{name} is {_what(x)}: give one measurement vector a row, (m, d)")
            _check_finite(name, x)
        if len(self.a) != len(self.b):
            raise InputError(f"a has {len(self.a)} rows and b {len(self.b)}: give as many of both")
        self.m, self.shape_in = len(self.a), (self.a.shape[1], self.b.shape[1])

    def forward(self, U: Float[Tensor, "d1 k"], V: Float[Tensor, "d2 k"]) -> Float[Tensor, " m"]:
        product: Tensor = ((self.a @ U) * (self.b @ V)).sum(1)
        return product

    def adjoint(self, r: Float[Tensor, " m"]) -> OuterSum:
        return OuterSum(self.a, self.b, r)

    def subset(self, index: Int[Tensor, " s"]) -> RankOneOperator:
        a = self.a.index_select(0, index)
        return RankOneOperator(a, None if self.b is self.a else self.b.index_select(0, index))

    def to(self, dtype: torch.dtype, device: torch.device) -> RankOneOperator:
        a = self.a.to(device, dtype)
        return RankOneOperator(a, None if self.b is self.a else self.b.to(device, dtype))

    def energy(self, w: Float[Tensor, " m"]) -> float:
        return float(w @ (row_squares(self.a) * row_squares(self.b)))


CROWDED = 16
"""Where more than one entry in so many is measured, a whole product is faster than its entries one by one."""


class EntryOperator:
    """y_i = X[rows_i, cols_i]: products cost O(m k), and X is not formed unless a sixteenth of it is measured."""

    def __init__(self, rows: Any, cols: Any, shape: tuple[int, int]) -> None:
        self.rows, self.cols = as_tensor(rows).long(), as_tensor(cols).long()
        self.shape_in = (int(shape[0]), int(shape[1]))
        if self.rows.dim() != 1 or self.rows.shape != self.cols.shape:
            raise InputError(
                f"rows is {_what(self.rows)} and cols {_what(self.cols)}: give two equal vectors"
            )
        for name, index, size in zip(("rows", "cols"), (self.rows, self.cols), self.shape_in, strict=True):
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
                raise InputError(
                    f"{name} holds indices from {int(index.min())} to {int(index.max())}: they must lie in [0, {size})"
                )
        self.m = self.rows.numel()
        self.crowded = self.m * CROWDED >= self.shape_in[0] * self.shape_in[1]

    def forward(self, U: Float[Tensor, "d1 k"], V: Float[Tensor, "d2 k"]) -> Float[Tensor, " m"]:
        if self.crowded:
            return (U @ V.mT)[self.rows, self.cols]
        return (U[self.rows] * V[self.cols]).sum(1)

    def adjoint(self, r: Float[Tensor, " m"]) -> Float[Tensor, "d1 d2"]:
        if self.crowded:
            place = self.rows * self.shape_in[1] + self.cols
            return (
                r.new_zeros(self.shape_in[0] * self.shape_in[1]).index_add_(0, place, r).view(self.shape_in)
            )
        index = torch.stack([self.rows, self.cols])
        return torch.sparse_coo_tensor(index, r, self.shape_in, check_invariants=False)

    def subset(self, index: Int[Tensor, " s"]) -> EntryOperator:
        return EntryOperator(self.rows[index], self.cols[index], self.shape_in)

    def to(self, dtype: torch.dtype, device: torch.device) -> EntryOperator:
        return EntryOperator(self.rows.to(device), self.cols.to(device), self.shape_in)

    def energy(self, w: Float[Tensor, " m"]) -> float:
        return float(w.sum())


class IdentityOperator(EntryOperator):
    """Every entry of X once, row by row."""

    def __init__(self, shape: tuple[int, int]) -> None:
        every = torch.arange(int(shape[0]) * int(shape[1]))
        super().__init__(every // int(shape[1]), every % int(shape[1]), shape)

    def forward(self, U: Float[Tensor, "d1 k"], V: Float[Tensor, "d2 k"]) -> Float[Tensor, " m"]:
        return (U @ V.mT).flatten()

    def adjoint(self, r: Float[Tensor, " m"]) -> Float[Tensor, "d1 d2"]:
        return r.view(self.shape_in)

    def to(self, dtype: torch.dtype, device: torch.device) -> IdentityOperator:
        return self


def dense(matrix: Tensor | OuterSum) -> Float[Tensor, "d1 d2"]:
    """An adjoint as an ordinary matrix."""
    if isinstance(matrix, OuterSum):
        return matrix.dense()
    return matrix.to_dense() if matrix.is_sparse else matrix


def frobenius(matrix: Tensor | OuterSum, symmetric: bool) -> Float[Tensor, ""]:
    """‖D‖_F of an adjoint, or ‖(D + Dᵀ)/2‖_F. Sparse ones stay sparse; a sum of outer products is formed."""
    if isinstance(matrix, Tensor) and matrix.is_sparse:
        entries: Tensor = ((matrix + matrix.mT) / 2 if symmetric else matrix).coalesce().values()
        norm: Tensor = torch.linalg.vector_norm(entries)
        return norm
    full = dense(matrix)
    norm = torch.linalg.matrix_norm((full + full.mT) / 2 if symmetric else full)
    return norm


def spectral_norm(
    matrix: Tensor | OuterSum, symmetric: bool = False, iterations: int = 30
) -> Float[Tensor, ""]:
    """‖D‖₂ of an adjoint, or ‖(D + Dᵀ)/2‖₂, by the power method: products with single columns only."""
    turned = matrix.mT
    columns = matrix.b.shape[1] if isinstance(matrix, OuterSum) else matrix.shape[1]
    like = matrix.r if isinstance(matrix, OuterSum) else matrix
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(columns, 1, dtype=torch.float64, generator=generator).to(like.device, like.dtype)
    for _ in range(iterations):
        x = x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)
        y = (matrix @ x + turned @ x) / 2 if symmetric else matrix @ x
        x = (matrix @ y + turned @ y) / 2 if symmetric else turned @ y
    norm: Tensor = x.norm().sqrt()
    return norm


def as_tensor(x: Any) -> Tensor:
    """A dense or scipy sparse matrix as a tensor of the same kind.

    Its memory is shared where PyTorch can: arrays that are read-only, run backwards or have other bytes are copied.
    """
    if hasattr(x, "tocoo"):
        coo = x.tocoo()
        index = torch.stack([as_tensor(coo.row).long(), as_tensor(coo.col).long()])
        return torch.sparse_coo_tensor(
            index, as_tensor(coo.data), coo.shape, check_invariants=False
        ).coalesce()
    if isinstance(x, np.ndarray) and not (
        x.flags.writeable and x.dtype.isnative and min(x.strides, default=0) >= 0
    ):
        x = x.astype(x.dtype.newbyteorder("="), order="C")
    return torch.as_tensor(x)


def row_squares(X: Float[Tensor, "c d"]) -> Float[Tensor, " c"]:
    """‖a_i‖² of every row, dense or sparse."""
    if not X.is_sparse:
        return X.square().sum(1)
    X = X.coalesce()
    return X.values().new_zeros(X.shape[0]).index_add_(0, X.indices()[0], X.values().square())


def _check_finite(name: str, x: Tensor) -> None:
    values = x.coalesce().values() if x.is_sparse else x
    if not bool(values.isfinite().all()):
        raise InputError(f"{name} contains NaN or infinity: remove those measurements")


def _what(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
