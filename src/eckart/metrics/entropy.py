"""Entropies of hidden states from their smaller Gram matrix."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.arguments import checked
from eckart.metrics._states import Mask, States, read_states

SMALLEST_SHARE = 1e-12
"""Eigenvalues of Σ at most this are left out of the entropy."""


@checked
def matrix_entropy(
    hidden: Float[Tensor, "*batch n d"],
    mask: Mask | None = None,
    *,
    relative: bool = True,
    normalise: bool = True,
) -> Float[Tensor, "*batch"]:
    """Von Neumann entropy of the covariance of normalised tokens, −Σ λ ln λ with λ the eigenvalues of ZᵀZ / tr ZᵀZ.

    The eigenvalues are those of the smaller of ZᵀZ and ZZᵀ, in float64; the d×d covariance is never formed for n < d.
    0 for rank one, ln k for k equal eigenvalues. Differentiable.

    Args:
        hidden: hidden states of each text, float16 to float64; or matrices, with ``normalise=False``.
        mask: True where a row is a token.
        relative: divide by ln d; False: nats.
        normalise: centre the tokens and bring them to unit length, as `normalised_states`.

    Returns:
        float32, or float64 for float64; NaN for a text that cannot be normalised.

    Raises:
        InputError: hidden states or a mask of the wrong type or shape.

    Source: Wei et al., arXiv:2401.17139; the baseline of arXiv:2410.10672.
    """
    states = read_states(hidden, mask, normalise)
    return states.answer(von_neumann(states, relative))


@checked
def renyi_entropy(
    hidden: Float[Tensor, "*batch n d"],
    mask: Mask | None = None,
    *,
    normalise: bool = True,
) -> Float[Tensor, "*batch"]:
    """Rényi-2 entropy of the same covariance in nats, −ln ‖Σ‖_F² with Σ = ZᵀZ / tr ZᵀZ.

    One matrix product and no eigenvalues; at most the `matrix_entropy` in nats. Differentiable.

    Args:
        hidden: hidden states of each text, float16 to float64; or matrices, with ``normalise=False``.
        mask: True where a row is a token.
        normalise: centre the tokens and bring them to unit length, as `normalised_states`.

    Returns:
        float32, or float64 for float64; NaN for a text that cannot be normalised.

    Raises:
        InputError: hidden states or a mask of the wrong type or shape.

    Source: Sanchez Giraldo, Rao & Principe, arXiv:1211.2459.
    """
    states = read_states(hidden, mask, normalise)
    return states.answer(collision(states))


def von_neumann(states: States, relative: bool = True) -> Float[Tensor, "*batch"]:
    """−Σ λ ln λ, relative to ln d or in nats."""
    shares = states.eigenvalues / states.eigenvalues.sum(-1, keepdim=True)
    counted = ~(shares <= SMALLEST_SHARE)
    entropy: Tensor = torch.where(counted, torch.special.entr(torch.where(counted, shares, 1.0)), 0.0).sum(-1)
    return entropy / math.log(states.width) if relative and states.width > 1 else entropy


def collision(states: States) -> Float[Tensor, "*batch"]:
    """−ln ‖Σ‖_F²."""
    trace = states.gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    entropy: Tensor = 2 * (trace.log() - torch.linalg.matrix_norm(states.gram).log())
    return entropy
