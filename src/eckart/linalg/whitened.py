"""Low-rank layers that keep a layer's outputs, not its weights: pure functions in float64.

S = W G Wᵀ = Q Λ Qᵀ          W ≈ Q_k Q_kᵀ W

G (in, in)   covariance of the inputs, or their second moment E[x xᵀ]
Q (out, n)   n = min(out, in), directions of the outputs in falling order of Λ
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.linalg.moments import Moments
from eckart.linalg.spectrum import SVD


class OutputSpectrum(NamedTuple):
    """Eigenvalues of S in falling order, never negative, and their directions."""

    values: Float[Tensor, " n"]
    basis: Float[Tensor, "out n"]


class Factors(NamedTuple):
    """y = (x Aᵀ) Bᵀ + bias, in place of x Wᵀ + bias; bias is None where the layer has none."""

    A: Float[Tensor, "k in"]
    B: Float[Tensor, "out k"]
    bias: Float[Tensor, " out"] | None

    @property
    def product(self) -> Float[Tensor, "out in"]:
        """B A."""
        return self.B @ self.A


def output_spectrum(weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]) -> OutputSpectrum:
    """Eigenvalues and directions of S = W G Wᵀ, by an eigenproblem of size min(out, in).

    A tall W = P T (P orthonormal) gives S = P (T G Tᵀ) Pᵀ, so that no root or inverse of G is formed and a singular G
    (fewer tokens than inputs) is as good as any. Q_k Q_kᵀ W is the truncated SVD of W L times L⁻¹, L Lᵀ = G.

    Args:
        weight: W.
        gram: G, symmetric and positive semi-definite.

    Source: Yu & Wu, AAAI 2023 (features); Wang et al., arXiv:2403.07378 (whitening).
    """
    wide = weight.double()
    outer, inner = (None, wide) if wide.shape[0] <= wide.shape[1] else torch.linalg.qr(wide)
    small = inner @ gram.double() @ inner.T
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    return OutputSpectrum(values, vectors if outer is None else outer @ vectors)


def mimic_factors(
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    basis: Float[Tensor, "out k"],
    input_mean: Float[Tensor, " in"] | None = None,
) -> Factors:
    """A = Q_kᵀ W, B = Q_k, and the bias that keeps the mean of the outputs.

    With the mean μ = W E[x] + b of the outputs: bias = Q_kQ_kᵀ b + (I − Q_kQ_kᵀ) μ. Without it b is kept.

    Args:
        weight: W.
        bias: b, or None.
        basis: Q_k, orthonormal columns.
        input_mean: E[x]; None for factors that are not centred.
    """
    wide = weight.double()
    kept = None if bias is None else bias.double()
    if input_mean is not None:
        left = wide @ input_mean.double()
        left = left - basis @ (basis.T @ left)
        kept = left if kept is None else kept + left
    return Factors(basis.T @ wide, basis, kept)


def balanced(factors: Factors) -> Factors:
    """The same map with √Σ on both sides: AAᵀ = BᵀB = Σ."""
    q, r = torch.linalg.qr(factors.B)
    u, s, vh = torch.linalg.svd(r @ factors.A, full_matrices=False)
    root = s.sqrt()
    return Factors(root.unsqueeze(1) * vh, q @ (u * root), factors.bias)


def svd_factors(svd: SVD, rank: int, bias: Float[Tensor, " out"] | None = None) -> Factors:
    """The leading part of an SVD as balanced factors, A = √Σ_k V_kᵀ and B = U_k √Σ_k."""
    root = svd.S[:rank].sqrt()
    return Factors(root.unsqueeze(1) * svd.Vh[:rank], svd.U[:, :rank] * root, bias)


def output_error(
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    factors: Factors,
    moments: Moments,
) -> float:
    """E‖y − ŷ‖² over the inputs that the moments are of.

    Args:
        weight: W of the layer that was replaced.
        bias: its b, or None.
        factors: what replaces it.
        moments: of the inputs.
    """
    change = weight.double() - factors.product
    shift = change @ moments.mean
    for value, sign in ((bias, 1), (factors.bias, -1)):
        shift = shift if value is None else shift + sign * value.double()
    spread = torch.sum((change @ moments.covariance) * change)
    return float(spread.clamp_min(0) + shift.square().sum())
