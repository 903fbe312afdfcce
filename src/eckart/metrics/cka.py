"""Linear CKA: how alike two representations of the same tokens are, layer by layer and model by model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.errors import InputError
from eckart.metrics._states import Mask, read_states

LEAST = 4
"""Tokens that the unbiased estimate needs."""


def linear_cka(
    x: Float[Tensor, "*batch n p"],
    y: Float[Tensor, "*batch n q"],
    mask: Mask | None = None,
) -> Float[Tensor, "*batch"]:
    """Centred kernel alignment with the linear kernel, ‖YᵀX‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F), X and Y centred. Differentiable.

    1 where Y is X turned, scaled or shifted, 0 where no direction of one goes with one of the other. Directions of
    large variance decide it, and with fewer tokens than dimensions it is near 1 for anything: `LinearCKA` is unbiased.

    Args:
        x: representations of each text, float16 to float64.
        y: others of the same tokens, of any width.
        mask: True where a row is a token.

    Returns:
        float32, or float64 for float64; NaN where one of the two does not vary, or for NaN or Inf.

    Raises:
        InputError: other tokens in x than in y, or a mask of the wrong type or shape.

    Source: Kornblith, Norouzi, Lee & Hinton, ICML 2019, arXiv:1905.00414.
    """
    a, b = _centred(x, mask), _centred(y, mask)
    if a.shape[:-1] != b.shape[:-1]:
        raise InputError(
            f"x has the shape {tuple(x.shape)}, y {tuple(y.shape)}: give representations of the same tokens"
        )
    squares = [_square(first, second) for first, second in ((a, b), (a, a), (b, b))]
    value = squares[0] / (squares[1] * squares[2]).sqrt()
    return value.to(
        device=x.device, dtype=torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    )


class LinearCKA:
    """Linear CKA of every layer with every other, over any number of batches, by the unbiased estimate of HSIC.

    HSIC(K, L) = (tr KL + 1ᵀK1·1ᵀL1/((n−1)(n−2)) − 2·1ᵀKL1/(n−2)) / (n (n−3)) of K = XXᵀ and L = YYᵀ with zeros on the
    diagonal, added up over batches of n tokens; CKA = HSIC(K, L)/√(HSIC(K, K) HSIC(L, L)). Only n×n matrices and one
    number for each pair of layers are kept.

    Source: Nguyen, Raghu & Kornblith, ICLR 2021, arXiv:2010.15327; Song et al., JMLR 13 (2012).
    """

    def __init__(self) -> None:
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None

    def update(
        self, layers: Sequence[Float[Tensor, "n _"]], others: Sequence[Float[Tensor, "n _"]] | None = None
    ) -> None:
        """Add a batch.

        Args:
            layers: the states of the same n tokens in each layer, n at least 4.
            others: likewise of another model, of as many tokens; None compares the layers with one another.

        Raises:
            InputError: fewer than four tokens, another number of them in some layer, another number of layers than
                before, or states that are no real numbers.
        """
        rows = self._grams(layers)
        cols = rows if others is None else self._grams(others)
        if rows.shape[1:] != cols.shape[1:]:
            raise InputError(
                f"layers have {rows.shape[1]} tokens and others {cols.shape[1]}: give the same tokens"
            )
        new = (
            torch.stack([_hsic(a, cols) for a in rows]),
            torch.stack([_hsic(a, a) for a in rows]),
            torch.stack([_hsic(a, a) for a in cols]),
        )
        if self._sums is not None and self._sums[0].shape != new[0].shape:
            raise InputError(f"layers: {tuple(new[0].shape)} this time, {tuple(self._sums[0].shape)} before")
        old = self._sums or tuple(map(torch.zeros_like, new))
        self._sums = (old[0] + new[0], old[1] + new[1], old[2] + new[2])

    def compute(self) -> Float[Tensor, "layers others"]:
        """CKA of each pair, in float64; NaN where a layer does not vary.

        Raises:
            InputError: before any batch.
        """
        if self._sums is None:
            raise InputError("LinearCKA has seen no batch: call update first")
        cross, rows, cols = self._sums
        return cross / (rows.clamp_min(0).unsqueeze(1) * cols.clamp_min(0)).sqrt()

    def _grams(self, layers: Sequence[Tensor]) -> Float[Tensor, "layers n n"]:
        grams: list[Tensor] = []
        for layer in layers:
            x = _centred(layer, None)
            if x.dim() != 2 or len(x) < LEAST or (grams and len(x) != len(grams[0])):
                raise InputError(
                    f"a layer has the shape {tuple(layer.shape)}: give (n, width), the same n ≥ {LEAST} in all"
                )
            grams.append((x @ x.mT).fill_diagonal_(0))
        return torch.stack(grams)


def _centred(x: Tensor, mask: Tensor | None) -> Tensor:
    states = read_states(x, mask, normalise=False)
    matrix = (states.matrix.cpu() if states.matrix.device.type == "mps" else states.matrix).double()
    mean = matrix.sum(-2, keepdim=True) / states.count.clamp(min=1)[..., None, None].to(matrix.device)
    centred = torch.where(states.real.unsqueeze(-1).to(matrix.device), matrix - mean, 0.0)
    return torch.where(states.valid[..., None, None].to(matrix.device), centred, torch.nan)


def _square(a: Tensor, b: Tensor) -> Tensor:
    """‖AᵀB‖_F², by the smaller of AᵀB and the two Gram matrices of tokens."""
    if a.shape[-2] < min(a.shape[-1], b.shape[-1]):
        return ((a @ a.mT) * (b @ b.mT)).sum((-2, -1))
    return (a.mT @ b).square().sum((-2, -1))


def _hsic(a: Float[Tensor, "n n"], b: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    n = a.shape[-1]
    sums = a.sum(-1), b.sum(-1)
    both = sums[0].sum(-1) * sums[1].sum(-1) / ((n - 1) * (n - 2))
    value: Tensor = (a * b).sum((-2, -1)) + both - 2 * (sums[0] * sums[1]).sum(-1) / (n - 2)
    return value / (n * (n - 3))
