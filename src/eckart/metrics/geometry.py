"""Where hidden states lie, as points: how much they point one way, and how many dimensions they fill."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.arguments import checked
from eckart.metrics._states import Mask, read_states


def anisotropy(
    hidden: Float[Tensor, "*batch n d"],
    mask: Mask | None = None,
) -> Float[Tensor, "*batch"]:
    """Mean cosine of two different tokens of a text, (‖Σ_i h_i/‖h_i‖ ‖² − n) / (n (n − 1)). Differentiable.

    0 where directions are spread evenly, 1 where all are one. The tokens are not centred: a common mean is what it
    mostly shows, and one large coordinate suffices for a value near 1.

    Args:
        hidden: hidden states of each text, float16 to float64.
        mask: True where a row is a token.

    Returns:
        float32, or float64 for float64; NaN for a text of fewer than two tokens, with a token of zero, NaN or Inf.

    Raises:
        InputError: hidden states or a mask of the wrong type or shape.

    Source: Ethayarajh, EMNLP 2019, arXiv:1909.00512.
    """
    states = read_states(hidden, mask, normalise=False)
    length = torch.linalg.vector_norm(states.matrix, dim=-1, keepdim=True)
    real = states.real.unsqueeze(-1)
    usable = ((length > 0) | ~real).all((-2, -1)) & (states.count > 1)
    units = torch.where(real & (length > 0), states.matrix / torch.where(length > 0, length, 1.0), 0.0)
    n = states.count.to(torch.float64)
    total = units.double().sum(-2).square().sum(-1)
    return states.answer(torch.where(usable, (total - n) / (n * (n - 1)), torch.nan))


@checked
def two_nn(
    hidden: Float[Tensor, "*batch n d"],
    mask: Mask | None = None,
    *,
    discard: float = 0.1,
) -> Float[Tensor, "*batch"]:
    """Intrinsic dimension from the ratio μ_i = r_i2/r_i1 of the distances to the two nearest other tokens.

    Where points are locally uniform in d dimensions, F(μ) = 1 − μ^−d: with the μ in rising order and F_i = i/N, d is
    the slope through the origin of −ln(1 − F_i) on ln μ_i, d = Σ x_i y_i / Σ x_i², over all but the largest share
    ``discard``. It looks at the finest scale alone, where noise counts as dimensions, and is too low for high
    dimensions with few tokens. O(n²) memory.

    Args:
        hidden: points of each text, float16 to float64.
        mask: True where a row is a token.
        discard: in [0, 1).

    Returns:
        float32, or float64 for float64; NaN for a text of fewer than four different tokens, with NaN or Inf. A token
        that occurs twice is left out of the fit.

    Raises:
        InputError: discard out of its range, hidden states or a mask of the wrong type or shape.

    Source: Facco, d'Errico, Rodriguez & Laio, Scientific Reports 7 (2017), arXiv:1803.06992.
    """
    states = read_states(hidden, mask, normalise=False)
    points = (states.matrix.cpu() if states.matrix.device.type == "mps" else states.matrix).double()
    real, width = states.real.to(points.device), points.shape[-2]
    if width < 3:
        return states.answer(torch.full_like(states.count, torch.nan, dtype=torch.float64))
    far = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    itself = torch.eye(width, dtype=torch.bool, device=points.device)
    near = far.masked_fill(itself | ~real.unsqueeze(-2), math.inf).topk(2, largest=False).values
    known = real & (near[..., 0] > 0) & near[..., 1].isfinite()
    x = torch.where(known, (near[..., 1] / near[..., 0]).log(), math.inf).sort(-1).values
    count = known.sum(-1, keepdim=True)
    place = torch.arange(1, width + 1, device=points.device, dtype=torch.float64)
    used = place <= (count.double() * (1 - discard) + 1e-9).floor().clamp_max(count - 1)
    y = -torch.log1p(-torch.where(used, place / count.clamp_min(1), 0.0))
    x = torch.where(used, x, 0.0)
    slope = (x * y).sum(-1) / x.square().sum(-1)
    return states.answer(torch.where((count.squeeze(-1) > 3) & slope.isfinite(), slope, torch.nan))
