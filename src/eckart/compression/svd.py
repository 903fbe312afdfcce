"""The two baselines: the truncated SVD of a weight, and that of the whitened weight.

    W ≈ U_k Σ_k V_kᵀ                   the best rank-k weight
    W ≈ SVD_k(W L) L⁻¹,  L Lᵀ = E[xxᵀ]  the best rank-k weight for the layer's outputs

Source: Eckart & Young, Psychometrika 1 (1936); Wang et al., "SVD-LLM", 2024, arXiv:2403.07378.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.compression._method import FactorCompressor
from eckart.linalg.moments import Moments
from eckart.linalg.spectrum import SVD
from eckart.linalg.whitened import Factors, balanced, mimic_factors, output_spectrum, svd_factors


@dataclass
class PlainSVD(FactorCompressor):
    """Truncated SVD of every weight; needs no data."""

    slug: ClassVar[str] = "svd"
    calibrated: ClassVar[bool] = False

    def factors(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        rank: int,
        moments: Moments | None,
    ) -> Factors:
        return truncated(weight, bias, rank)


@dataclass
class WhitenedSVD(FactorCompressor):
    """Truncated SVD of every weight as its inputs see it: the least error of the outputs without a new bias."""

    slug: ClassVar[str] = "whitened-svd"

    def factors(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        rank: int,
        moments: Moments | None,
    ) -> Factors:
        assert moments is not None
        return balanced(mimic_factors(weight, bias, output_spectrum(weight, moments.second).basis[:, :rank]))


def truncated(weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None, rank: int) -> Factors:
    """The best rank-k weight as balanced factors, in float64."""
    svd = SVD(*torch.linalg.svd(weight.double(), full_matrices=False))
    return svd_factors(svd, rank, None if bias is None else bias.double())
