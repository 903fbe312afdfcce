"""The layer that stands in a model for each frozen one: its routes, merging and scaling, as PEFT expects of its own."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from eckart.adapters._base import Adapter
from eckart.adapters._config import AdapterConfig
from eckart.adapters._layers import FrozenWeight, LayerOp, LayerShape
from eckart.errors import InputError

PLAIN_LAYERS = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
"""Types whose forward is known to be `LayerOp.apply` of their weight, unless it is quantised."""
_WIDE = (torch.float32, torch.float64)


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


class EckartLayer(nn.Module, BaseTunerLayer):
    """A frozen layer and its adapters: y = base(x) + Σ x ΔWᵀ, by the cheaper of two routes to the same numbers.

    Attributes:
        seams: by adapter, what stands between it and this layer.
        companions: by adapter, what acts beside it while training.
    """

    adapter_layer_names = ("eckart_adapters",)
    other_param_names = ("scaling", "configs", "seams", "companions")

    def __init__(self, base_layer: nn.Module, shape: LayerShape, op: LayerOp, frozen: FrozenWeight) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.shape, self.op, self.frozen = shape, op, frozen
        self.quantization_backend = frozen.backend
        self.eckart_adapters = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.configs: dict[str, AdapterConfig] = {}
        self.seams: dict[str, Seam] = {}
        self.companions: dict[str, Companion] = {}
        self._disable_adapters = False
        self.cast_input_dtype_enabled = True  # turned off by peft.helpers.disable_input_dtype_casting
        self.merged_adapters: list[str] = []
        self._bias_before: nn.Parameter | None = None
        self._foldable = type(base_layer) in PLAIN_LAYERS and frozen.backend is None

    def add(self, name: str, adapter: Adapter, config: AdapterConfig) -> None:
        """Attach an adapter under a name."""
        self.eckart_adapters[name] = adapter
        self.scaling[name] = 1.0
        self.configs[name] = config
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        names = [name for name in self.active_adapters if name in self.eckart_adapters]
        if self._disable_adapters or self.merged_adapters or not names:
            return self.base_layer(x, *args, **kwargs)
        if not args and not kwargs and self._is_plain():
            if self.op.kind == "linear" and x.dim() > 2:  # one flat product instead of several reshaped ones
                return self.forward(x.flatten(0, -2)).view(*x.shape[:-1], self.shape.out_features)
            if self._folds(x, names):
                return self._folded(x, names)
        result = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        if self.frozen.backend is not None:
            result = self.frozen.backend.maybe_clone_base_result(result)
        scale = self._get_embed_scale() if self.op.kind == "embedding" else None
        for name in names:
            result = self._add_branch(result, x, name, scale)
        return result.to(dtype)

    def _is_plain(self) -> bool:
        """Whether the base layer is nothing but its weight, its bias and its operation."""
        return self._foldable and not _hooked(self.base_layer) and "forward" not in self.base_layer.__dict__

    def _folds(self, x: Tensor, names: list[str]) -> bool:
        """Whether one product with W₀ + ΔW is asked for or, when the route is free, cheaper without losing digits."""
        asked = False
        for name in names:
            config = self.configs[name]
            if config.route == "factored" or (config.dropout and self.training):
                return False
            if _hooked(self.eckart_adapters[name]):
                return False
            asked = asked or config.route == "folded"
        weight = self.base_layer.weight
        if asked or weight.dtype not in _WIDE or torch.is_autocast_enabled(weight.device.type):
            return asked
        tokens = x.numel() if self.op.kind == "embedding" else x.numel() // x.shape[self.op.channels]
        costs = [self.eckart_adapters[name].multiply_adds(tokens) for name in names]
        return sum(factored - folded for factored, folded in costs) > 0

    def _folded(self, x: Tensor, names: list[str]) -> Tensor:
        adapters = [self.eckart_adapters[name] for name in names]

        def product(x: Tensor) -> Tensor:
            weight, bias = self.frozen(), getattr(self.base_layer, "bias", None)
            for name, adapter in zip(names, adapters, strict=True):
                scaling, seam = self.scaling[name], self.seams.get(name)
                if seam is None:
                    weight = adapter.fold(weight, scaling)
                else:
                    delta = seam.delta(adapter, adapter.delta_weight())
                    weight = torch.add(weight, delta.to(weight.dtype), alpha=scaling)
                if (companion := self._companion(name)) is not None:
                    weight = weight + companion.to(weight.dtype)
                if (change := adapter.delta_bias()) is not None:
                    bias = scaling * change if bias is None else torch.add(bias, change, alpha=scaling)
            return self.op.apply(x, weight.reshape(self.shape.weight), bias)

        if torch.is_grad_enabled() and any(adapter.recompute for adapter in adapters):
            return checkpoint(product, x, use_reentrant=False, preserve_rng_state=False)
        return product(x)

    def _add_branch(self, result: Tensor, x: Tensor, name: str, embed_scale: Tensor | None) -> Tensor:
        """The result and one adapter's branch, by the factored route."""
        adapter, scaling, seam, branch = (
            self.eckart_adapters[name],
            self.scaling[name],
            self.seams.get(name),
            x,
        )
        if x.is_floating_point():
            p = self.configs[name].dropout
            branch = nn.functional.dropout(x, p) if p and self.training else x
            branch = self._cast_input_dtype(branch, adapter.dtype)
        if seam is None and embed_scale is None and not _hooked(adapter):
            result = adapter.add_to(result, branch, scaling)
        else:
            y = adapter(branch) if seam is None else _seamed(seam, adapter, branch)
            result = torch.add(
                result, y if embed_scale is None else embed_scale.to(y.dtype) * y, alpha=scaling
            )
        if (companion := self._companion(name)) is not None:
            result = result + self.op.apply(branch, companion.reshape(self.shape.weight).to(branch.dtype))
        if (bias := adapter.delta_bias()) is not None:
            over = [1] * (len(self.shape.weight) - 2) if self.op.kind == "conv" else []
            result = result + scaling * bias.to(result.dtype).view(-1, *over)
        return result

    def _companion(self, name: str) -> Tensor | None:
        """What acts beside an adapter in this pass: only in training, and only where gradients are recorded."""
        companion = self.companions.get(name)
        return companion.delta_weight() if companion and self.training and torch.is_grad_enabled() else None

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """ΔW of one adapter, scaled, in the layout of the base layer's weight."""
        delta = self.eckart_adapters[adapter_name].delta_weight() * self.scaling[adapter_name]
        shape = self.shape.weight[::-1] if self.op.stored_transposed else self.shape.weight
        return self.op.to_stored(delta, torch.Size(shape))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add ΔW to the base weight. The weight from before is kept (one copy) so that `unmerge` is exact.

        Args:
            safe_merge: check the merged weight for NaN and Inf before it replaces the old one.
            adapter_names: the adapters to merge; the active ones when None.

        Raises:
            ValueError: the merged weight is not finite and ``safe_merge`` is on.
        """
        names = [
            name for name in check_adapters_to_merge(self, adapter_names) if name in self.eckart_adapters
        ]
        backend = self.frozen.backend
        if names and backend is not None and not backend.supports_merge:
            raise InputError(
                f"layer {self.shape.name} is quantised by {backend.backend_name}, which cannot be merged"
            )
        for name in names:
            with torch.no_grad():
                stored = self.frozen.stored
                delta = self.get_delta_weight(name)
                wide = torch.promote_types(torch.promote_types(stored.dtype, delta.dtype), torch.float32)
                merged = (stored.to(wide) + delta.to(wide)).to(stored.dtype)
                if safe_merge and not torch.isfinite(merged).all():
                    raise ValueError(
                        f"NaNs detected in the merged weights. The adapter {name} seems to be broken"
                    )
            base = self.get_base_layer()
            before = base.weight if backend is not None else base.weight.data
            try:
                self.set_base_weight(merged)
            except Exception:
                self._put_back(before)
                raise
            if self.frozen.original is None:
                self.frozen.original = before
                self._bias_before = getattr(base, "bias", None)
            self.frozen.module = self.get_base_layer()
            if (change := self.eckart_adapters[name].delta_bias()) is not None:
                self._add_to_bias(self.scaling[name] * change.detach())
            self.merged_adapters.append(name)

    def _add_to_bias(self, change: Float[Tensor, " out"]) -> None:
        base = self.get_base_layer()
        bias = change.to(base.weight.dtype) if base.bias is None else base.bias + change.to(base.bias.dtype)
        base.bias = nn.Parameter(bias.detach(), requires_grad=False)

    def unmerge(self) -> None:
        """Put back the very bits the base weight had before the first merge."""
        if not self.merged_adapters:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self._put_back(self.frozen.original)
        self.frozen.original = None
        if self._bias_before is not getattr(self.get_base_layer(), "bias", None):
            self.get_base_layer().bias = self._bias_before
        self.merged_adapters.clear()

    def _put_back(self, weight: Tensor) -> None:
        base = self.get_base_layer()
        if self.frozen.backend is not None:
            base.weight = weight
        else:
            base.weight.data = weight

    def set_scale(self, adapter: str, scale: float) -> None:
        """Multiply ΔW of one adapter by ``scale``."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale

    def scale_layer(self, scale: float) -> None:
        """Multiply ΔW of the active adapters by a further factor."""
        for name in self.active_adapters:
            if name in self.scaling:
                self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undo `scale_layer` by the same factor, or all scaling when None."""
        for name in self.active_adapters:
            if name in self.scaling:
                self.scaling[name] = 1.0 if scale is None else self.scaling[name] / scale

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Every ΔW is additive, so PEFT can convert it."""
        return True

    @property
    def in_features(self) -> int:
        """Columns of the weight as a matrix."""
        return self.shape.in_features

    @property
    def out_features(self) -> int:
        """Rows of the weight as a matrix."""
        return self.shape.out_features

    def extra_repr(self) -> str:
        return f"{self.shape.kind}, out={self.shape.out_features}, in={self.shape.in_features}"


def _hooked(module: nn.Module) -> bool:
    """Whether somebody listens to the calls of a module, which must then be made."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)


def _seamed(seam: Seam, adapter: Adapter, x: Tensor) -> Tensor:
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
