"""How much each layer loses where all together lose a share: φ_l = L φ softmax(−s/ε)_l, capped.

Source: Lin et al., ICLR 2025, arXiv:2408.09632.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def raw_allocation(
    influence: Float[Tensor, " layers"], average: float, epsilon: float
) -> Float[Tensor, " layers"]:
    """φ_l = L φ softmax(−s/ε)_l, before any cap."""
    return len(influence) * average * torch.softmax(-influence / epsilon, 0)


def allocate(
    influence: Float[Tensor, " layers"], average: float, epsilon: float, cap: float
) -> Float[Tensor, " layers"]:
    """Share of its dimensions that each layer loses; what is above the cap goes to the others in proportion.

    Args:
        influence: s of each layer.
        average: φ, the mean of the shares, at most ``cap``.
        epsilon: ε.
        cap: the most that a layer loses.
    """
    weights = torch.softmax(-influence / epsilon, 0)
    shares = raw_allocation(influence, average, epsilon)
    capped = torch.zeros_like(shares, dtype=torch.bool)
    for _ in range(len(shares)):
        over = (shares > cap) & ~capped
        if not bool(over.any()):
            break
        capped |= over
        excess = len(shares) * average - cap * int(capped.sum())
        free = torch.where(capped, 0.0, weights)
        shares = torch.where(capped, cap, excess * free / free.sum().clamp_min(torch.finfo(free.dtype).tiny))
    return shares
