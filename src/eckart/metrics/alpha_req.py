"""α-ReQ: how fast the spectrum of hidden states falls."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.arguments import checked
from eckart.errors import InputError
from eckart.metrics._states import Mask, States, read_states


@checked
def alpha_req(
    hidden: Float[Tensor, "*batch n d"],
    mask: Mask | None = None,
    *,
    first: int = 1,
    last: int | None = None,
    normalise: bool = True,
) -> Float[Tensor, "*batch"]:
    """The α of λ_i ∝ i^−α: minus the least-squares slope of ln λ_i on ln i, λ_i the eigenvalues of ZᵀZ. Differentiable.

    About 1 is the fastest decay of a smooth code, 0 a spectrum that does not fall. It says nothing of what the
    directions mean, and depends on the number of tokens while that is below the width.

    Args:
        hidden: hidden states of each text, float16 to float64; or matrices, with ``normalise=False``.
        mask: True where a row is a token.
        first: the largest eigenvalue of the fit, from 1.
        last: the smallest; None takes all that are positive, n − 1 at most for n centred tokens.
        normalise: centre the tokens and bring them to unit length, as `normalised_states`.

    Returns:
        float32, or float64 for float64; NaN for a text that cannot be normalised or has fewer than two eigenvalues
        in the range.

    Raises:
        InputError: not 1 ≤ first < last, hidden states or a mask of the wrong type or shape.

    Source: Agrawal, Mondal, Ghosh & Richards, NeurIPS 2022, "α-ReQ".
    """
    if first < 1 or (last is not None and last <= first):
        raise InputError(f"first = {first}, last = {last}: give 1 ≤ first < last")
    states = read_states(hidden, mask, normalise)
    return states.answer(decay(states, first, last, normalise))


def decay(
    states: States, first: int = 1, last: int | None = None, centred: bool = True
) -> Float[Tensor, "*batch"]:
    """Minus the slope of ln λ_i on ln i."""
    values = states.eigenvalues
    place = torch.arange(1, values.shape[-1] + 1, device=values.device, dtype=values.dtype)
    most = (states.count - int(centred)).to(values.device).unsqueeze(-1)
    used = (values > 0) & (place >= first) & (place <= most)
    if last is not None:
        used = used & (place <= last)
    count = used.sum(-1, keepdim=True)
    x, y = torch.where(used, place.log(), 0.0), torch.where(used, torch.where(used, values, 1.0).log(), 0.0)
    x, y = (torch.where(used, z - z.sum(-1, keepdim=True) / count, 0.0) for z in (x, y))
    slope: Tensor = (x * y).sum(-1) / x.square().sum(-1)
    return torch.where(count.squeeze(-1) > 1, -slope, torch.nan)
