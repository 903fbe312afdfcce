"""Matrix Nuclear-Norm: the sum of the largest column norms of normalised hidden states."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eckart.arguments import checked
from eckart.metrics._states import ROUNDING, Mask, States, measurable, read_states, real_rows

BLOCK = 2**17
"""Numbers of the blocks of rows that are normalised and summed while they are in the cache, on a CPU."""


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

    Differentiable: ∂Σ/∂Z_ij = Z_ij / ‖Z_·j‖ for the columns counted, 0 for a column of zeros. Without a gradient no Z
    is kept: the tokens are read twice, for their mean and for the sums of squares, block by block.

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
    kept = torch.is_grad_enabled() and isinstance(hidden, Tensor) and hidden.requires_grad
    if mask is None and normalise and not kept and fits(hidden):
        found = _at_once(hidden, D, per_token)
        if found is not None:
            return found
    real = real_rows(hidden, mask)
    if not normalise or hidden.shape[-2] == 0 or kept:
        states = read_states(hidden, mask, normalise)
        return states.answer(column_norms(states, D, per_token))
    count = real.sum(-1)
    norms, valid = _streamed(hidden, real, count, mask is not None)
    return torch.where(valid, _largest(norms, hidden.shape[-2], count, D, per_token), torch.nan)


def column_norms(states: States, D: int | None = None, per_token: bool = True) -> Float[Tensor, "*batch"]:
    """Sum of the D largest column norms, by token or whole."""
    norms = torch.linalg.vector_norm(states.matrix, dim=-2)
    return _largest(norms, states.matrix.shape[-2], states.count, D, per_token)


def fits(hidden: Tensor) -> bool:
    """Whether these are texts that fit in the cache together, on a CPU."""
    return (
        isinstance(hidden, Tensor)
        and hidden.is_floating_point()
        and hidden.dim() > 1
        and 0 < hidden.numel() <= 2 * BLOCK
        and hidden.device.type == "cpu"
        and not torch.compiler.is_compiling()
    )


def _at_once(
    hidden: Float[Tensor, "*batch n d"], D: int | None, per_token: bool
) -> Float[Tensor, "*batch"] | None:
    """The score of texts that fit in the cache; None where a token may be within rounding of the mean."""
    n, d = hidden.shape[-2:]
    x = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    mean = x.mean(-2, keepdim=True)
    squares = (x - mean).square_()
    length = squares.sum(-1, keepdim=True)
    nearest, farthest = (math.sqrt(float(end)) for end in length.aminmax())
    typical = float(torch.linalg.vector_norm(mean)) + farthest
    if not ROUNDING * torch.finfo(x.dtype).eps * typical < nearest <= farthest < math.inf:
        return None
    norms = (length.reciprocal_().mT @ squares).squeeze(-2).sqrt_()
    most = min(n if D is None else D, d)
    total: Tensor = (norms if most == d else norms.topk(most, sorted=False).values).sum(-1)
    return total / n if per_token else total


def _streamed(
    hidden: Float[Tensor, "*batch n d"],
    real: Bool[Tensor, "*batch n"],
    count: Int[Tensor, "*batch"],
    padded: bool,
) -> tuple[Float[Tensor, "*batch d"], Bool[Tensor, "*batch"]]:
    """Norms of the columns of Z, and whether a text has them, without Z: by blocks of rows that stay in the cache."""
    batch, (n, d) = hidden.shape[:-2], hidden.shape[-2:]
    tokens, known = hidden.reshape(-1, n, d), real.reshape(-1, n, 1)
    most = BLOCK if hidden.device.type == "cpu" else max(1, hidden.numel())
    texts, rows = max(1, most // (n * d)), max(1, most // d)
    kind = torch.promote_types(hidden.dtype, torch.float32)
    mean, squares = (tokens.new_zeros(len(tokens), 1, d, dtype=kind) for _ in range(2))
    lengths = tokens.new_empty(len(tokens), n, 1, dtype=kind)
    for text, on, m, total, length in zip(
        *(t.split(texts) for t in (tokens, known, mean, squares, lengths)), strict=True
    ):
        parts = list(zip(text.split(rows, 1), on.split(rows, 1), length.split(rows, 1), strict=True))
        if padded:
            for part, there, _ in parts:
                m += torch.where(there, part.to(kind), 0.0).sum(1, keepdim=True)
            m /= on.sum(1, keepdim=True).clamp(min=1)
        else:
            torch.mean(text, 1, keepdim=True, dtype=kind, out=m)
        for part, there, square in parts:
            x = (part - m).square_()
            if padded:
                x.masked_fill_(~there, 0.0)
            torch.sum(x, -1, keepdim=True, out=square)
            weight = torch.where(there, 1 / square, 0.0) if padded else square.reciprocal()
            total.baddbmm_(weight.mT, x)
    valid = measurable(lengths.sqrt_().view(*batch, n), mean.view(*batch, d), real, count)[1]
    return squares.sqrt_().view(*batch, d), valid


def _largest(
    norms: Float[Tensor, "*batch d"], n: int, count: Int[Tensor, "*batch"], D: int | None, per_token: bool
) -> Float[Tensor, "*batch"]:
    most = min(n if D is None else D, norms.shape[-1])
    largest: Tensor = norms.topk(most).values
    if D is None:
        largest = torch.where(torch.arange(most, device=norms.device) < count.unsqueeze(-1), largest, 0.0)
    total: Tensor = largest.sum(-1)
    return total / count if per_token else total
