"""Nuclear and Schatten norms of hidden states from the eigenvalues of their smaller Gram matrix."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.arguments import checked
from eckart.metrics._states import Mask, States, read_states


@checked
def nuclear_norm(
    hidden: Float[Tensor, "*batch n d"],
    mask: Mask | None = None,
    *,
    per_token: bool = True,
    normalise: bool = True,
) -> Float[Tensor, "*batch"]:
    """Exact nuclear norm of normalised hidden states, Σ σ_i(Z) / n. Differentiable.

    Singular values come from the Gram matrix in float64: those below about 1e-7 σ_1 count as 0.

    Args:
        hidden: hidden states of each text, float16 to float64; or matrices, with ``normalise=False``.
        mask: True where a row is a token.
        per_token: divide by the number n of real tokens.
        normalise: centre the tokens and bring them to unit length, as `normalised_states`.

    Returns:
        float32, or float64 for float64; NaN for a text that cannot be normalised.

    Raises:
        InputError: hidden states or a mask of the wrong type or shape.

    Source: what arXiv:2410.10672 approximates.
    """
    states = read_states(hidden, mask, normalise)
    return states.answer(schatten(states, 1.0, per_token))


@checked
def schatten_norm(
    hidden: Float[Tensor, "*batch n d"],
    mask: Mask | None = None,
    *,
    p: float,
    per_token: bool = True,
    normalise: bool = True,
) -> Float[Tensor, "*batch"]:
    """Schatten norm of normalised hidden states, (Σ σ_i(Z)^p)^(1/p) / n. Differentiable.

    p = 1 is the nuclear norm, p = 2 Frobenius' (always √n for normalised states), p = ∞ the spectral norm.

    Args:
        hidden: hidden states of each text, float16 to float64; or matrices, with ``normalise=False``.
        mask: True where a row is a token.
        p: above 0; below 1 it is a quasi-norm.
        per_token: divide by the number n of real tokens.
        normalise: centre the tokens and bring them to unit length, as `normalised_states`.

    Returns:
        float32, or float64 for float64; NaN for a text that cannot be normalised.

    Raises:
        InputError: p not above 0, hidden states or a mask of the wrong type or shape.
    """
    states = read_states(hidden, mask, normalise)
    return states.answer(schatten(states, p, per_token))


def schatten(states: States, p: float = 1.0, per_token: bool = True) -> Float[Tensor, "*batch"]:
    """(Σ σ^p)^(1/p), by token or whole."""
    norm: Tensor = torch.linalg.vector_norm(states.singular_values, p, dim=-1)
    return norm / states.count.to(norm.device) if per_token else norm
