"""Filters of a convolution as matrices of low rank: pure functions.

A weight (N, C, H, W) is one matrix by channels (NC) or by space (VH), or N of them (ND: network decoupling):

    NC  (N, C H W)      VH  (C H, N W)      ND  N × (C, H W)
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Scheme = Literal["NC", "VH", "ND"]


class FilterSVD(NamedTuple):
    """SVD of the matrix or matrices of a weight, and how many values each keeps."""

    U: Float[Tensor, "b m k"]
    S: Float[Tensor, "b k"]
    Vh: Float[Tensor, "b k n"]

    def keep(self, ranks: Tensor) -> FilterSVD:
        """The values above each rank set to zero."""
        places = torch.arange(self.S.shape[-1], device=self.S.device)
        return self._replace(S=torch.where(places < ranks.unsqueeze(-1), self.S, 0.0))


def to_matrices(weight: Float[Tensor, "N C H W"], scheme: Scheme) -> Float[Tensor, "b m n"]:
    """The matrices of a weight, b = 1 but for ND."""
    n, c, h, w = weight.shape
    if scheme == "NC":
        return weight.reshape(1, n, c * h * w)
    if scheme == "VH":
        return weight.permute(1, 2, 0, 3).reshape(1, c * h, n * w)
    return weight.reshape(n, c, h * w)


def from_matrices(
    matrices: Float[Tensor, "b m n"], scheme: Scheme, shape: torch.Size
) -> Float[Tensor, "N C H W"]:
    """The weight of these matrices: the inverse of `to_matrices`."""
    n, c, h, w = shape
    if scheme == "VH":
        return matrices.reshape(c, h, n, w).permute(2, 0, 1, 3)
    return matrices.reshape(n, c, h, w)


def filter_svd(weight: Float[Tensor, "N C H W"], scheme: Scheme) -> FilterSVD:
    """SVD of the matrices of a weight, in float32 or the weight's own wider type."""
    matrices = to_matrices(weight, scheme)
    return FilterSVD(
        *torch.linalg.svd(
            matrices.to(torch.promote_types(matrices.dtype, torch.float32)), full_matrices=False
        )
    )


def ranks_for_energy(s: Float[Tensor, "b k"], energy: float) -> Tensor:
    """Of each row the least k ≥ 1 with Σ_{i≤k} σ² ≥ energy · Σ σ².

    Args:
        s: singular values in falling order.
        energy: in (0, 1].
    """
    parts = s.double().square()
    held = parts.cumsum(-1) / parts.sum(-1, keepdim=True)
    return ((held < energy).sum(-1) + 1).clamp_max(s.shape[-1])


def ranks_above(s: Float[Tensor, "b k"], value: float) -> Tensor:
    """Of each row the number of singular values of at least ``value``, one at least."""
    return (s >= value).sum(-1).clamp_min(1)


def projected(svd: FilterSVD, ranks: Tensor) -> Float[Tensor, "b m n"]:
    """The matrices with only their leading singular values."""
    kept = svd.keep(ranks)
    return (kept.U * kept.S.unsqueeze(-2)) @ kept.Vh


def nuclear_subgradient(svd: FilterSVD, ranks: Tensor) -> Float[Tensor, "b m n"]:
    """U_k V_kᵀ of the values that are kept: a sub-gradient of the nuclear norm of the projected matrices.

    Source: Xu et al., 2020, arXiv:2004.14566.
    """
    return projected(svd._replace(S=torch.ones_like(svd.S)), ranks)


def multiply_adds(scheme: Scheme, shape: torch.Size, rank: int) -> int:
    """Multiply–adds of the factors for one place of the output.

    NC r(CHW + N), VH r(CH + NW), ND r(NC + NHW); of the weight itself NCHW.

    Args:
        scheme: how it is factored.
        shape: (N, C, H, W).
        rank: r.
    """
    n, c, h, w = shape
    return rank * {"NC": c * h * w + n, "VH": c * h + n * w, "ND": n * c + n * h * w}[scheme]
