"""The matrix that a metric looks at: checked, masked, centred, its rows of unit length, its spectrum found once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from eckart.errors import InputError

Mask = Bool[Tensor, "*batch n"] | Integer[Tensor, "*batch n"]
"""True or 1 where a row is a token."""
ROUNDING = 16
"""A centred row shorter than this many units of rounding of a typical token counts as zero."""
LARGEST = 1e150
"""Squares of larger numbers do not fit in float64."""


@dataclass(frozen=True)
class States:
    """The matrices of a batch of texts, ready to be measured.

    Attributes:
        matrix: float32 or float64; rows of padding and texts that cannot be measured are zero.
        real: the rows that are tokens.
        count: of each text, tokens.
        valid: whether a text can be measured.
    """

    matrix: Float[Tensor, "*batch n d"]
    real: Bool[Tensor, "*batch n"]
    count: Int[Tensor, "*batch"]
    valid: Bool[Tensor, "*batch"]

    @property
    def width(self) -> int:
        return self.matrix.shape[-1]

    @cached_property
    def gram(self) -> Float[Tensor, "*batch k k"]:
        """The smaller of Z Zᵀ and Zᵀ Z in float64, whose eigenvalues are the σ² of Z and perhaps zeros."""
        matrix = self.matrix.cpu() if self.matrix.device.type == "mps" else self.matrix
        wide = matrix.double()
        return wide @ wide.mT if wide.shape[-2] <= wide.shape[-1] else wide.mT @ wide

    @cached_property
    def eigenvalues(self) -> Float[Tensor, "*batch k"]:
        """σ² in falling order, zero where rounding leaves no digit."""
        found: Tensor = torch.linalg.eigvalsh(self.gram).flip(-1)
        noise = max(self.matrix.shape[-2:]) * torch.finfo(found.dtype).eps
        return torch.where(found > noise * found[..., :1], found, 0.0)

    @cached_property
    def singular_values(self) -> Float[Tensor, "*batch k"]:
        """σ in falling order; the gradient at σ = 0 is 0."""
        positive = self.eigenvalues > 0
        return torch.where(positive, torch.where(positive, self.eigenvalues, 1.0).sqrt(), 0.0)

    def answer(self, value: Tensor) -> Float[Tensor, "*batch"]:
        """The metric's value in the type and on the device of the matrix, NaN for texts that cannot be measured."""
        return torch.where(self.valid, value.to(self.matrix), torch.nan)


def read_states(
    hidden: Float[Tensor, "*batch n d"],
    mask: Mask | None = None,
    normalise: bool = True,
) -> States:
    """Check hidden states and their mask, and make the matrices that the metrics look at.

    Args:
        hidden: one matrix for each text, its rows the tokens; or any other matrices.
        mask: True (1) where a row is a token; None: everywhere.
        normalise: subtract the mean token and bring every row to unit length; False: the matrix as it is.

    Raises:
        InputError: no floating-point tensor of at least two dimensions, or a mask of another type, shape or values.
    """
    real = real_rows(hidden, mask)
    if hidden.shape[-2] == 0:
        hidden, real = (
            hidden.new_zeros(*hidden.shape[:-2], 1, hidden.shape[-1]),
            real.new_zeros(*real.shape[:-1], 1),
        )
    x = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    count = real.sum(-1)
    if mask is not None:
        x = torch.where(real.unsqueeze(-1), x, 0.0)
    if not normalise:
        valid = (count > 0) & (torch.linalg.vector_norm(x, torch.inf, dim=(-2, -1)) < LARGEST)
        return States(torch.where(valid[..., None, None], x, 0.0), real, count, valid)
    mean = x.sum(-2, keepdim=True) / count.clamp(min=1)[..., None, None]
    x = x - mean
    length = torch.where(real, torch.linalg.vector_norm(x, dim=-1), 0.0)
    usable, valid = measurable(length, mean.squeeze(-2), real, count)
    kept = usable & valid.unsqueeze(-1)
    z = x / torch.where(kept, length, 1.0).unsqueeze(-1)
    return States(z.masked_fill_(~kept.unsqueeze(-1), 0.0), real, count, valid)


def measurable(
    length: Float[Tensor, "*batch n"],
    mean: Float[Tensor, "*batch d"],
    real: Bool[Tensor, "*batch n"],
    count: Int[Tensor, "*batch"],
) -> tuple[Bool[Tensor, "*batch n"], Bool[Tensor, "*batch"]]:
    """Which tokens are more than rounding away from the mean token, and which texts have two tokens and only such.

    Args:
        length: distances from the mean token, 0 for padding.
        mean: the mean token.
        real: the rows that are tokens.
        count: of each text, tokens.
    """
    typical = torch.linalg.vector_norm(mean, dim=-1) + length.sum(-1) / count.clamp(min=1)
    floor = ROUNDING * torch.finfo(length.dtype).eps * typical
    usable = (length > floor.unsqueeze(-1)) & (length < torch.inf)
    return usable, (count > 1) & (usable | ~real).all(-1)


def normalised_states(
    hidden: Float[Tensor, "*batch n d"],
    mask: Mask | None = None,
) -> Float[Tensor, "*batch n d"]:
    """Tokens without their mean, each of unit length.

    X = H − 1·mean_rows(H), Z_i = X_i / ‖X_i‖₂; the mean is over real tokens, rows of padding are 0.

    Args:
        hidden: hidden states of each text, float16 to float64; short types are widened to float32 first.
        mask: True where a row is a token.

    Returns:
        Z. A text with fewer than two tokens, with a token equal to the mean, or with NaN or Inf is NaN.

    Raises:
        InputError: no floating-point tensor of at least two dimensions, or a mask of another type, shape or values.

    Source: Li, Xia, Chang & Wu, arXiv:2410.10672.
    """
    states = read_states(hidden, mask)
    known = states.valid[..., None, None] | ~states.real.unsqueeze(-1)
    return torch.where(known, states.matrix, torch.nan)[..., : hidden.shape[-2], :]


def real_rows(hidden: Tensor, mask: Tensor | None) -> Bool[Tensor, "*batch n"]:
    """The rows that are tokens; anything that is no hidden states or no mask is refused."""
    if not isinstance(hidden, Tensor) or not hidden.is_floating_point():
        kind = hidden.dtype if isinstance(hidden, Tensor) else type(hidden).__name__
        raise InputError(f"hidden is {kind}: give a tensor of real floating-point numbers")
    if hidden.dim() < 2 or hidden.shape[-1] == 0:
        raise InputError(
            f"hidden has the shape {tuple(hidden.shape)}: give (..., tokens, width), width at least 1"
        )
    if mask is None:
        return torch.ones(hidden.shape[:-1], dtype=torch.bool, device=hidden.device)
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"mask is {kind}: give booleans or 0 and 1, as a tokenizer's attention_mask")
    if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
        raise InputError("mask holds other numbers than 0 and 1: give 1 for real tokens, 0 for padding")
    if mask.shape != hidden.shape[:-1]:
        raise InputError(
            f"mask has the shape {tuple(mask.shape)}: hidden {tuple(hidden.shape)} needs {tuple(hidden.shape[:-1])}"
        )
    return mask.to(hidden.device, torch.bool)
