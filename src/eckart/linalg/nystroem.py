"""Fewer hidden units between two matrices, with the second refitted: pure functions in float64.

C = E[z zᵀ] of the hidden units z        W′ = W C[:, J] C[J, J]⁺ is the least-squares refit on the units J
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

SINGULAR = 1e-12
"""Pivots of a Cholesky factor below this share of the largest count as zero."""


def ridge_leverage(gram: Float[Tensor, "m m"], ridge: float) -> Float[Tensor, " m"]:
    """Ridge leverage scores s = diag(C (C + λI)⁻¹), s_i = 1 − λ [(C + λI)⁻¹]_ii.

    Args:
        gram: C, positive semi-definite.
        ridge: λ > 0, in the units of C.

    Source: Musco & Musco, NeurIPS 2017, arXiv:1605.07583; as used by Lin et al., arXiv:2408.09632.
    """
    wide = gram.double()
    shifted = wide + ridge * torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if int(failed):
        values, vectors = torch.linalg.eigh(wide)
        values = values.clamp_min(0)
        leverage: Tensor = vectors.square() @ (values / (values + ridge))
        return leverage
    scores: Tensor = 1 - ridge * torch.cholesky_inverse(factor).diagonal()
    return scores


def largest(scores: Float[Tensor, " m"], count: int) -> Int[Tensor, " count"]:
    """The places of the largest scores, in rising order; of equal scores the first."""
    kept: Tensor = scores.sort(descending=True, stable=True).indices[:count].sort().values
    return kept


def nystroem_refit(
    weight: Float[Tensor, "out m"], gram: Float[Tensor, "m m"], kept: Int[Tensor, " k"]
) -> Float[Tensor, "out k"]:
    """W′ = W C[:, J] C[J, J]⁺, which makes E‖W z − W′ z_J‖² least.

    Args:
        weight: W.
        gram: C, positive semi-definite; of less than full rank where tokens were few.
        kept: J.

    Source: Lin et al., 2024, arXiv:2408.09632.
    """
    wide = gram.double()
    inner = wide[kept][:, kept]
    target = wide[kept] @ weight.double().T
    factor, failed = torch.linalg.cholesky_ex(inner)
    pivots = factor.diagonal().square()
    if int(failed) or bool(pivots.min() <= SINGULAR * pivots.max()):
        solved: Tensor = torch.linalg.pinv(inner, hermitian=True, rtol=SINGULAR) @ target
    else:
        solved = torch.cholesky_solve(target, factor)
    return solved.T


def refit_error(
    weight: Float[Tensor, "out m"],
    gram: Float[Tensor, "m m"],
    kept: Int[Tensor, " k"],
    refitted: Float[Tensor, "out k"],
) -> float:
    """E‖W z − W′ z_J‖² = tr(D C Dᵀ), D = W with W′ taken off its columns J."""
    change = weight.double().clone()
    change[:, kept] -= refitted.double()
    return float(torch.sum((change @ gram.double()) * change))
