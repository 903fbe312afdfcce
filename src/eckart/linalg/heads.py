"""Attention heads of fewer dimensions: pure functions in float64, one group of query heads at a time.

keys and queries   coordinates are dropped; with RoPE in pairs, which a rotation leaves together
values and outputs V (d, h), O_1 … O_G (h′, d) of the query heads that share V: the best product of rank r
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.linalg.nystroem import SINGULAR


class ValueOutput(NamedTuple):
    """V′ and O′_h of rank r, and all singular values of C^{1/2} Vᵀ [O_1ᵀ … O_Gᵀ], or of C^{1/2} Vᵀ alone."""

    value: Float[Tensor, "r h"]
    outputs: Float[Tensor, "heads out r"]
    singular_values: Float[Tensor, " d"]


def coordinate_scores(
    query: Float[Tensor, "heads d"], key: Float[Tensor, " d"], pairs: int = 0, reimplementation: bool = False
) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " rest"]]:
    """How much each coordinate of a group's keys and queries adds to the attention scores.

    s_j = √(E k_j² · Σ_h E q_{h,j}²), the product of the column norms of C_K^{1/2} and C_Q^{1/2}. Of a pair
    {j, j + pairs} the mean squares of both coordinates are added, which no rotation changes.

    Args:
        query: mean squares E q² of each query head of the group, before or after the rotation.
        key: mean squares E k² of their common key.
        pairs: the first 2·pairs coordinates are rotated in pairs {j, j + pairs}; 0 without RoPE.
        reimplementation: √(Σ_h E q_j² E k_j² + E q_j′² E k_j′²) of a pair instead, which the rotation changes.

    Returns:
        The scores of the pairs, and of the coordinates that are not rotated.

    Source: Lin et al., 2024, arXiv:2408.09632; pairs are ours.
    """
    query, key = query.double(), key.double()
    half = slice(0, pairs), slice(pairs, 2 * pairs)
    if reimplementation:
        rotated = sum((query[:, part] * key[part] for part in half), torch.zeros(())).sum(0).sqrt()
    else:
        rotated = ((query[:, half[0]] + query[:, half[1]]).sum(0) * (key[half[0]] + key[half[1]])).sqrt()
    return rotated, (query.sum(0) * key)[2 * pairs :].sqrt()


def value_output(
    value: Float[Tensor, "d h"],
    outputs: Float[Tensor, "heads out d"],
    gram: Float[Tensor, "h h"],
    rank: int,
    joint: bool = True,
) -> ValueOutput:
    """The best V′, O′ of rank r: E Σ_h ‖x VᵀO_hᵀ − x V′ᵀO′_hᵀ‖² = Σ_{i>r} σ_i² is least.

    With V C Vᵀ = E Λ Eᵀ (d, d) and Λ^{1/2} Eᵀ [O_1ᵀ … O_Gᵀ] = U Σ Pᵀ,

        V′ = Σ_r^{1/2} U_rᵀ Λ^{-1/2} Eᵀ V        O′_h = the part of P_r Σ_r^{1/2} that belongs to h

    so no root of C itself is formed. Σ is split evenly, which suits training and quantisation.

    Args:
        value: V.
        outputs: O_h of the query heads that share V.
        gram: C = E[x xᵀ] of the inputs.
        rank: r, 1 … d.
        joint: False truncates C^{1/2} Vᵀ alone and folds the rest into every O_h; never better.

    Source: Lin et al., 2024, arXiv:2408.09632; the joint form for shared values is ours.
    """
    value, outputs = value.double(), outputs.double()
    small = value @ gram.double() @ value.T
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    values = values.clamp_min(0)
    if not joint:
        basis = vectors.flip(1)[:, :rank]
        return ValueOutput(basis.T @ value, outputs @ basis, values.flip(0).sqrt())
    root = values.sqrt()
    inverse = torch.where(values > SINGULAR * values.max(), 1 / root, 0.0)
    stacked = outputs.reshape(-1, outputs.shape[-1])
    u, s, vh = torch.linalg.svd((root * vectors).T @ stacked.T, full_matrices=False)
    half = s[:rank].sqrt()
    new_value = (u[:, :rank] * half).T @ (inverse.unsqueeze(1) * (vectors.T @ value))
    return ValueOutput(new_value, (vh[:rank].T * half).reshape(*outputs.shape[:2], rank), s)
