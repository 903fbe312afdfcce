"""AdamW as pure updates: of whole parameters here, of projected gradients in `DCTAdamW`.

    m ← β₁ m + (1 − β₁) g      v ← β₂ v + (1 − β₂) g²      p ← (1 − ηλ) p − η m̂/(√v̂ + ε)

with m̂ = m/(1 − β₁ᵗ) and v̂ = v/(1 − β₂ᵗ). Numbers that change from step to step are tensors without dimensions, so
that a compiled update serves every step.

Source: Loshchilov & Hutter, 2019, arXiv:1711.05101.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Adam(NamedTuple):
    """β₁, β₂, ε, and the corrections 1 − β₁ᵗ and √(1 − β₂ᵗ) of step t."""

    beta1: float
    beta2: float
    eps: float
    first: Tensor
    second: Tensor

    @classmethod
    def at(cls, group: dict[str, Any], step: int) -> Adam:
        """The numbers of a parameter group at a step, 1-based."""
        beta1, beta2 = group["betas"]
        return cls(beta1, beta2, group["eps"], number(1 - beta1**step), number((1 - beta2**step) ** 0.5))


def number(value: float) -> Tensor:
    """A tensor without dimensions, which takes part in a calculation without changing its type."""
    return torch.tensor(float(value), dtype=torch.float64)


def adam_direction(g: Tensor, m: Tensor, v: Tensor, adam: Adam) -> Tensor:
    """m̂/(√v̂ + ε), the moments brought up to date in place."""
    m.lerp_(g, 1 - adam.beta1)
    v.mul_(adam.beta2).addcmul_(g, g, value=1 - adam.beta2)
    return (m / adam.first).div_((v.sqrt() / adam.second).add_(adam.eps))


def descend(p: Tensor, update: Tensor, lr: Tensor, decay: Tensor) -> None:
    """p ← decay · p − lr · update in place, rounded to p's type once."""
    if p.dtype == update.dtype:
        p.mul_(decay).sub_(update * lr)
    else:
        p.copy_(p.to(update.dtype).mul_(decay).sub_(update * lr))


def adamw_update(
    p: Tensor, grad: Tensor, m: Tensor, v: Tensor, adam: Adam, lr: Tensor, decay: Tensor
) -> None:
    """One step of AdamW in place, computed in the moments' type."""
    descend(p, adam_direction(grad.to(m.dtype), m, v, adam), lr, decay)
