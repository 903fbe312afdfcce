"""What can stand between an adapter and its layer: seams, companions, and hooks of whoever listens."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.adapters._base import Adapter


class Seam(Protocol):
    """What a rule puts between an adapter and its layer: it sees what the adapter gives and the gradient that comes
    back. A gradient that it changes reaches the adapter's parameters alone; that of the layer's input stays exact."""

    def branch(self, adapter: Adapter, output: Tensor) -> Tensor:
        """On the factored route: the adapter's output, before its scaling."""

    def delta(self, adapter: Adapter, delta: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """On the folded route: ΔW."""


class Companion(Protocol):
    """A change of the weight that acts beside an adapter while training, and is never saved, counted or merged."""

    def delta_weight(self) -> Float[Tensor, "out in"]:
        """What is added to the weight in this forward pass."""


def hooked(module: nn.Module) -> bool:
    """Whether somebody listens to the calls of a module, which must then be made."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)


def through_seam(seam: Seam, adapter: Adapter, x: Tensor) -> Tensor:
    """An adapter's output through a seam, with the exact gradient of its input."""
    y = seam.branch(adapter, adapter(x.detach()))
    if not x.requires_grad:
        return y
    if any(p.requires_grad for module in adapter.shared.values() for p in module.parameters()):
        delta = adapter.delta_weight().detach().reshape(adapter.layer.shape.weight)
        through = adapter.layer.op.apply(x, delta.to(x.dtype))
    else:
        constant = {name: parameter.detach() for name, parameter in adapter.named_parameters()}
        through = torch.func.functional_call(adapter, constant, (x,))
    return y + (through - through.detach())
