"""What can stand between an adapter and its layer: seams, companions, and hooks of whoever listens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from eckart.adapters._base import Adapter, LowRankAdapter

if TYPE_CHECKING:
    from eckart.adapters._peft_layer import EckartLayer


@runtime_checkable
class Seam(Protocol):
    """What a rule puts between an adapter and its layer: it sees what the adapter gives and the gradient that comes
    back. A gradient that it changes reaches the adapter's parameters alone; that of the layer's input stays exact."""

    def branch(self, adapter: Adapter, output: Tensor) -> Tensor:
        """On the factored route: the adapter's output, before its scaling."""

    def delta(self, adapter: Adapter, delta: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """On the folded route: ΔW."""

    def rows(self, adapter: Adapter) -> Float[Tensor, " out"] | None:
        """What the rows of ΔW's gradient are multiplied by; None where the seam does more than that."""


@runtime_checkable
class Companion(Protocol):
    """A change of the weight that acts beside an adapter while training, and is never saved, counted or merged. It may
    be asked twice in a step, and must give the same both times; one that is a `LowRankAdapter` acts by its factors."""

    def delta_weight(self) -> Float[Tensor, "out in"]:
        """What is added to the weight in this forward pass."""


def perturbed(layer: EckartLayer, x: Tensor, companions: Sequence[Companion]) -> Tensor:
    """The output of a layer's frozen part with its weight changed by companions. The backward pass keeps no copy of the
    changed weight, but makes it again."""

    def weight() -> Tensor:
        changed = layer.frozen()
        for companion in companions:
            changed = changed + companion.delta_weight().to(changed.dtype)
        return changed.reshape(layer.shape.weight).contiguous()

    now = weight()
    place = now.untyped_storage().data_ptr()

    def pack(saved: Tensor) -> Tensor | tuple[torch.Size, tuple[int, ...]]:
        return (saved.shape, saved.stride()) if saved.untyped_storage().data_ptr() == place else saved

    def unpack(packed: Tensor | tuple[torch.Size, tuple[int, ...]]) -> Tensor:
        return packed if isinstance(packed, Tensor) else weight().as_strided(*packed)

    with saved_tensors_hooks(pack, unpack):
        return layer.op.apply(x, now, getattr(layer.base_layer, "bias", None))


def hooked(module: nn.Module) -> bool:
    """Whether somebody listens to the calls of a module, which must then be made."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)


class _Joined(torch.autograd.Function):
    """The first of two equal tensors, whose gradient goes to both."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, through: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient


class _RowScaled(torch.autograd.Function):
    """``y + x Aᵀ Bᵀ``, in whose backward pass the rows of the gradient of BA are multiplied for A and B alone."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, rows: Tensor) -> Tensor:
        h = x @ a.t()
        ctx.save_for_backward(x, a, b, rows, h)
        return torch.addmm(y, h, b.t())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, rows, h = ctx.saved_tensors
        scaled = rows.unsqueeze(1)
        exact, changed = (gradient @ torch.cat([b, scaled * b], 1)).chunk(2, dim=1)
        of_x = exact @ a if ctx.needs_input_grad[1] else None
        return gradient, of_x, changed.t() @ x, scaled * (gradient.t() @ h), None


def add_through_seam(
    seam: Seam, adapter: Adapter, y: Float[Tensor, "t out"], x: Float[Tensor, "t in"], scaling: float
) -> Float[Tensor, "t out"] | None:
    """``y + scaling · x ΔWᵀ`` through a seam that multiplies the rows of ΔW's gradient, in one pass; None where it does
    more, or the adapter's branch is no plain product of two factors."""
    if not isinstance(adapter, LowRankAdapter) or not adapter.is_plain or x.dim() != 2:
        return None
    if y.dtype != x.dtype or torch.is_autocast_enabled(x.device.type):
        return None
    rows = seam.rows(adapter)
    if rows is None:
        return None
    a, b = adapter.scaled_factors(scaling, x.dtype)
    added: Tensor = _RowScaled.apply(y, x, a, b, rows.to(x.dtype))  # type: ignore[no-untyped-call]
    return added


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
    joined: Tensor = _Joined.apply(y, through)  # type: ignore[no-untyped-call]
    return joined
