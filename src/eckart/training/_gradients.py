"""Gradients with respect to the weight of a layer whose factors are trained: estimated from theirs, or listened to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.adapters import Adapter, LowRankAdapter


def trains_its_factors(adapter: Adapter) -> bool:
    """Whether A and B are parameters themselves, as in LoRA, so that their gradients are at hand."""
    return isinstance(adapter, LowRankAdapter) and all(isinstance(f, nn.Parameter) for f in adapter.factors())


def product_rule(
    adapter: Any, of_a: Tensor, of_b: Tensor
) -> tuple[Float[Tensor, "out twice_r"], Float[Tensor, "twice_r in"]]:
    """scale · (of_B A + B of_A) as the product of ``M = scale · [of_B, B]`` and ``N = [A; of_A]``.

    Args:
        adapter: one that trains its factors.
        of_a: its gradient or momentum with respect to A, of A's shape.
        of_b: the same for B.
    """
    a, b = (factor.detach() for factor in adapter.factors())
    wide = torch.promote_types(a.dtype, torch.float32)
    a, b, of_a, of_b = (tensor.to(wide) for tensor in (a, b, of_a, of_b))
    return adapter.scale * torch.cat([of_b, b], 1), torch.cat([adapter._active(a, 0), of_a])


def row_squares(m: Float[Tensor, "out r"], n: Float[Tensor, "r in"]) -> Float[Tensor, " out"]:
    """The squared row norms of ``m n``, by the Gram matrix of n."""
    return ((m @ (n @ n.t())) * m).sum(1).clamp(min=0)


def listening(
    shape: tuple[int, int], like: Tensor, hear: Callable[[Tensor], None]
) -> Float[Tensor, "out in"]:
    """Zeros that, added to a weight, give its gradient to ``hear``.

    Args:
        shape: of the weight.
        like: a tensor of its dtype on its device.
        hear: is called in the backward pass.
    """
    silent = like.new_zeros(()).requires_grad_(torch.is_grad_enabled()).expand(shape)
    if silent.requires_grad:
        silent.register_hook(hear)
    return silent
