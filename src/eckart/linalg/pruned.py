"""Rows and columns taken out of matrices, and put back as zeros: pure functions on index lists.

    small = S_out W S_inᵀ,      ΔW of the large = S_outᵀ ΔW_small S_in,      S: rows of the identity

Source: Zhang et al., 2025, arXiv:2502.13533.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eckart.errors import InputError


def kept_indices(pruned: Int[Tensor, " p"], size: int, what: str = "pruned") -> Int[Tensor, " k"]:
    """What of 0 … size − 1 is left, in order.

    Args:
        pruned: indices that go, in any order.
        size: of the side.
        what: the message's name for them.

    Raises:
        InputError: an index out of range or twice, or nothing left.
    """
    outside = pruned[(pruned < 0) | (pruned >= size)]
    if outside.numel():
        raise InputError(f"{what} holds {int(outside[0])}, which is no index from 0 to {size - 1}")
    left = torch.ones(size, dtype=torch.bool).index_fill_(0, pruned.long().cpu(), False)
    if int(left.sum()) != size - pruned.numel():
        raise InputError(f"{what} holds an index twice: give each once")
    if not bool(left.any()):
        raise InputError(f"{what} names all {size}: a layer would be empty; leave at least one")
    return left.nonzero().flatten()


def query_rows(pruned: Int[Tensor, " p"], head_dim: int, groups: int) -> Int[Tensor, " q"]:
    """The rows of the queries (and columns of the output projection) that go with pruned rows of keys and values.

    Args:
        pruned: rows of whole heads of keys and values.
        head_dim: d.
        groups: G, query heads that share one of them: the head that starts at row s takes s·G … s·G + d·G along.

    Raises:
        InputError: rows that are no whole heads.
    """
    rows = pruned.long().sort().values
    starts = rows[::head_dim]
    whole = (starts[:, None] + torch.arange(head_dim, device=rows.device)).flatten()
    if rows.numel() % head_dim or bool((starts % head_dim).any()) or not torch.equal(whole, rows):
        raise InputError(
            f"the pruned rows of keys and values are no whole heads of {head_dim}: prune by head"
        )
    return (starts[:, None] * groups + torch.arange(head_dim * groups, device=rows.device)).flatten()


def take(matrix: Float[Tensor, "*shape"], kept: Int[Tensor, " k"], dim: int) -> Float[Tensor, "*other"]:
    """The rows (dim 0) or columns (dim 1) that are left."""
    return matrix.index_select(dim, kept.to(matrix.device))


def put(
    factor: Float[Tensor, "*shape"], kept: Int[Tensor, " k"], size: int, dim: int
) -> Float[Tensor, "*other"]:
    """The rows or columns back in their places, zeros between them: the inverse of `take` on what is left.

    Raises:
        InputError: another number of rows or columns than are left.
    """
    if factor.shape[dim] != len(kept):
        raise InputError(
            f"a factor of shape {tuple(factor.shape)} does not fit {len(kept)} of {size} indices along axis {dim}: "
            "it was trained on another model"
        )
    shape = list(factor.shape)
    shape[dim] = size
    return factor.new_zeros(shape).index_copy_(dim, kept.to(factor.device), factor)


def least(scores: Float[Tensor, " n"], ratio: float) -> Int[Tensor, " p"]:
    """The ⌊ratio · n⌋ indices of the least scores, in order; of equal ones the first."""
    count = int(ratio * len(scores) + 1e-9)
    return scores.sort(stable=True).indices[:count].sort().values


def smallest_entries(weight: Float[Tensor, "out in"], ratio: float, of: int | None = None) -> Tensor:
    """A mask that is False where the least entries by size stood: of each row, or of each run of ``of`` inputs.

    Args:
        weight: W.
        ratio: share of the entries to drop.
        of: entries of a run; a divisor of the inputs.
    """
    runs = weight.detach().abs().unflatten(1, (-1, of or weight.shape[1]))
    drop = int(ratio * runs.shape[-1] + 1e-9)
    order = runs.sort(dim=-1, stable=True).indices[..., :drop]
    return torch.ones_like(runs, dtype=torch.bool).scatter_(-1, order, False).flatten(1)
