"""Matrix Nuclear-Norm: the sum of the largest column norms of normalised hidden states."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.arguments import checked
from eckart.metrics._states import Mask, States, read_states


@checked
def matrix_nuclear_norm(
    hidden: Float[Tensor, "*batch n d"],
    mask: Mask | None = None,
    *,
    D: int | None = None,
    per_token: bool = True,
    normalise: bool = True,
) -> Float[Tensor, "*batch"]:
    """Sum of the D largest column norms of normalised hidden states, Σ_{j≤D} ‖Z_·j‖₂ / n.

    An approximation of the nuclear norm that costs one pass over Z; at most √(D/n), which a rank-one Z with entries of
    equal size attains. With D = d it is at least the nuclear norm, and equal where the columns of Z are orthogonal.

    Differentiable: ∂Σ/∂Z_ij = Z_ij / ‖Z_·j‖ for the columns counted, 0 for a column of zeros.

    Args:
        hidden: hidden states of each text, float16 to float64; or matrices, with ``normalise=False``.
        mask: True where a row is a token.
        D: columns counted, at most d; None: min(n, d) with the n of each text.
        per_token: divide by the number n of real tokens.
        normalise: centre the tokens and bring them to unit length, as `normalised_states`.

    Returns:
        float32, or float64 for float64; NaN for a text that cannot be normalised.

    Raises:
        InputError: D below 1, hidden states or a mask of the wrong type or shape.

    Source: Li, Xia, Chang & Wu, "Large Language Model Evaluation via Matrix Nuclear-Norm", arXiv:2410.10672.
    """
    states = read_states(hidden, mask, normalise)
    return states.answer(column_norms(states, D, per_token))


def column_norms(states: States, D: int | None = None, per_token: bool = True) -> Float[Tensor, "*batch"]:
    """Sum of the D largest column norms, by token or whole."""
    n, d = states.matrix.shape[-2:]
    most = min(n if D is None else D, d)
    largest: Tensor = torch.linalg.vector_norm(states.matrix, dim=-2).topk(most).values
    if D is None:
        largest = torch.where(
            torch.arange(most, device=largest.device) < states.count.unsqueeze(-1), largest, 0.0
        )
    total: Tensor = largest.sum(-1)
    return total / states.count if per_token else total
