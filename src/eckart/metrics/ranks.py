"""Effective, energy and stable rank of hidden states from the eigenvalues of their smaller Gram matrix."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.arguments import checked
from eckart.linalg import spectrum
from eckart.metrics._states import Mask, States, read_states
from eckart.metrics.entropy import collision

RANKME_SHARE = 1e-7
"""What RankMe adds to every share."""


@checked
def effective_rank(
    hidden: Float[Tensor, "*batch n d"],
    mask: Mask | None = None,
    *,
    power: float = 1.0,
    normalise: bool = True,
) -> Float[Tensor, "*batch"]:
    """Effective rank of normalised hidden states, exp(−Σ p_i ln p_i) with p_i = σ_i^power / Σ σ^power.

    Args:
        hidden: hidden states of each text, float16 to float64; or matrices, with ``normalise=False``.
        mask: True where a row is a token.
        power: 1 is Roy & Vetterli's (`rankme` takes embeddings as they are); 2 is exp of the `matrix_entropy` in nats.
        normalise: centre the tokens and bring them to unit length, as `normalised_states`.

    Returns:
        float32, or float64 for float64; NaN for a text that cannot be normalised.

    Raises:
        InputError: power not above 0, hidden states or a mask of the wrong type or shape.

    Source: Roy & Vetterli, EUSIPCO 2007.
    """
    states = read_states(hidden, mask, normalise)
    return states.answer(spectrum.effective_rank(states.singular_values.pow(power)))


@checked
def energy_rank(
    hidden: Float[Tensor, "*batch n d"],
    mask: Mask | None = None,
    *,
    energy: float = 0.9,
    normalise: bool = True,
) -> Float[Tensor, "*batch"]:
    """Smallest r whose leading singular values hold a share of the squared norm, Σ_{i≤r} σ_i² ≥ energy · Σ σ_i².

    Args:
        hidden: hidden states of each text, float16 to float64; or matrices, with ``normalise=False``.
        mask: True where a row is a token.
        energy: the share, in (0, 1].
        normalise: centre the tokens and bring them to unit length, as `normalised_states`.

    Returns:
        a whole number as float32, or float64 for float64; NaN for a text that cannot be normalised.

    Raises:
        InputError: energy outside (0, 1], hidden states or a mask of the wrong type or shape.
    """
    states = read_states(hidden, mask, normalise)
    return states.answer(leading(states, energy))


@checked
def stable_rank(
    hidden: Float[Tensor, "*batch n d"],
    mask: Mask | None = None,
    *,
    normalise: bool = True,
) -> Float[Tensor, "*batch"]:
    """Stable rank of normalised hidden states, ‖Z‖_F² / ‖Z‖₂² = n / σ_1(Z)².

    Args:
        hidden: hidden states of each text, float16 to float64; or matrices, with ``normalise=False``.
        mask: True where a row is a token.
        normalise: centre the tokens and bring them to unit length, as `normalised_states`.

    Returns:
        float32, or float64 for float64; NaN for a text that cannot be normalised.

    Raises:
        InputError: hidden states or a mask of the wrong type or shape.

    Source: Rudelson & Vershynin, J. ACM 54 (2007), arXiv:math/0503442.
    """
    states = read_states(hidden, mask, normalise)
    return states.answer(spectrum.stable_rank(states.singular_values))


@checked
def participation_ratio(
    hidden: Float[Tensor, "*batch n d"],
    mask: Mask | None = None,
    *,
    normalise: bool = True,
) -> Float[Tensor, "*batch"]:
    """Participation ratio of normalised hidden states, (Σ λ_i)² / Σ λ_i², λ the eigenvalues of ZᵀZ. Differentiable.

    The exponential of the `renyi_entropy`: k for k equal eigenvalues, moved by the large ones alone.

    Args:
        hidden: hidden states of each text, float16 to float64; or matrices, with ``normalise=False``.
        mask: True where a row is a token.
        normalise: centre the tokens and bring them to unit length, as `normalised_states`.

    Returns:
        float32, or float64 for float64; NaN for a text that cannot be normalised.

    Raises:
        InputError: hidden states or a mask of the wrong type or shape.

    Source: Gao et al., bioRxiv 214262 (2017); for the number of modes, Bell & Dean, 1970.
    """
    states = read_states(hidden, mask, normalise)
    return states.answer(collision(states).exp())


def rankme(
    hidden: Float[Tensor, "*batch n d"],
    mask: Mask | None = None,
) -> Float[Tensor, "*batch"]:
    """RankMe of embeddings as they are, exp(−Σ p_i ln p_i) with p_i = σ_i/Σσ + 1e-7, neither centred nor normalised.

    It tells collapsed embeddings from spread ones, not which of two spread ones is better; more rows give more.

    Args:
        hidden: embeddings, float16 to float64, one set for each text.
        mask: True where a row is a token.

    Returns:
        float32, or float64 for float64; NaN for a set without rows, with NaN or Inf.

    Raises:
        InputError: hidden states or a mask of the wrong type or shape.

    Source: Garrido, Balestriero, Najman & LeCun, ICML 2023, arXiv:2210.02885.
    """
    states = read_states(hidden, mask, normalise=False)
    s = states.singular_values
    shares = s / s.sum(-1, keepdim=True) + RANKME_SHARE
    return states.answer(torch.special.entr(shares).sum(-1).exp())


def leading(states: States, energy: float = 0.9) -> Float[Tensor, "*batch"]:
    """Singular values that hold this share of the squared norm."""
    return spectrum.rank_within(states.singular_values, math.sqrt(1 - energy)).double()
