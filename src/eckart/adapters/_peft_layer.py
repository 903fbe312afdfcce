"""The layer that stands in a model for each frozen one: its routes, merging and scaling, as PEFT expects of its own."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from eckart.adapters._base import Adapter, AdapterConfig
from eckart.adapters._layers import FrozenWeight, LayerOp, LayerShape
from eckart.errors import InputError

PLAIN_LAYERS = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
"""Types whose forward is known to be `LayerOp.apply` of their weight, unless it is quantised."""
_WIDE = (torch.float32, torch.float64)


class EckartLayer(nn.Module, BaseTunerLayer):
    """A frozen layer and its adapters: y = base(x) + Σ x ΔWᵀ, by the cheaper of two routes to the same numbers."""

    adapter_layer_names = ("eckart_adapters",)
    other_param_names = ("scaling", "configs", "fold_gains")

    def __init__(self, base_layer: nn.Module, shape: LayerShape, op: LayerOp, frozen: FrozenWeight) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.shape, self.op, self.frozen = shape, op, frozen
        self.quantization_backend = frozen.backend
        self.eckart_adapters = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.configs: dict[str, AdapterConfig] = {}
        self.fold_gains: dict[str, tuple[int, int]] = {}
        self._disable_adapters = False
        self.cast_input_dtype_enabled = True  # turned off by peft.helpers.disable_input_dtype_casting
        self.merged_adapters: list[str] = []
        self._foldable = type(base_layer) in PLAIN_LAYERS and frozen.backend is None

    def add(self, name: str, adapter: Adapter, config: AdapterConfig) -> None:
        """Attach an adapter under a name."""
        self.eckart_adapters[name] = adapter
        self.scaling[name] = 1.0
        self.configs[name] = config
        # Multiply–adds saved by folding, which are affine in the number of tokens: at none, and for each.
        saved = [factored - folded for factored, folded in map(adapter.multiply_adds, (0, 1))]
        self.fold_gains[name] = saved[0], saved[1] - saved[0]
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        adapters = self.eckart_adapters
        names = [name for name in self.active_adapters if name in adapters]
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
            adapter, branch = adapters[name], x
            if x.is_floating_point():
                p = self.configs[name].dropout
                branch = nn.functional.dropout(x, p) if p and self.training else x
                branch = self._cast_input_dtype(branch, adapter.dtype)
            if scale is None:
                result = adapter.add_to(result, branch, self.scaling[name])
            else:
                result = result + self.scaling[name] * scale.to(result.dtype) * adapter(branch)
        return result.to(dtype)

    def _is_plain(self) -> bool:
        """Whether the base layer is nothing but its weight, its bias and its operation."""
        base = self.base_layer
        hooked = base._forward_hooks or base._forward_pre_hooks or "forward" in base.__dict__
        return self._foldable and not hooked

    def _folds(self, x: Tensor, names: list[str]) -> bool:
        """Whether one product with W₀ + ΔW is asked for or, when the route is free, cheaper without losing digits."""
        asked = False
        for name in names:
            config = self.configs[name]
            if config.route == "factored" or (config.dropout and self.training):
                return False
            asked = asked or config.route == "folded"
        weight = self.base_layer.weight
        if asked or weight.dtype not in _WIDE or torch.is_autocast_enabled(weight.device.type):
            return asked
        tokens = x.numel() if self.op.kind == "embedding" else x.numel() // x.shape[self.op.channels]
        return sum(self.fold_gains[name][0] + self.fold_gains[name][1] * tokens for name in names) > 0

    def _folded(self, x: Tensor, names: list[str]) -> Tensor:
        adapters = [(self.eckart_adapters[name], self.scaling[name]) for name in names]

        def product(x: Tensor) -> Tensor:
            weight = self.frozen()
            for adapter, scaling in adapters:
                weight = adapter.fold(weight, scaling)
            bias = getattr(self.base_layer, "bias", None)
            return self.op.apply(x, weight.reshape(self.shape.weight), bias)

        if torch.is_grad_enabled() and any(adapter.recompute for adapter, _ in adapters):
            return checkpoint(product, x, use_reentrant=False, preserve_rng_state=False)
        return product(x)

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
            self.frozen.module = self.get_base_layer()
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put back the very bits the base weight had before the first merge."""
        if not self.merged_adapters:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self._put_back(self.frozen.original)
        self.frozen.original = None
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
