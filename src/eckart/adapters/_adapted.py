"""A frozen weight in a model and the adapters on it: which act, W₀ + ΔW, merging and scaling, as PEFT expects."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from eckart.adapters._base import Adapter
from eckart.adapters._config import AdapterConfig
from eckart.adapters._layers import FrozenWeight, LayerOp, LayerShape
from eckart.adapters._seams import Companion, Seam
from eckart.errors import InputError


class AdaptedWeight(nn.Module, BaseTunerLayer):
    """A frozen weight W₀ and its adapters: W₀ + Σ ΔW, in the place that the model has it.

    Attributes:
        seams: by adapter, what stands between it and this weight.
        companions: by adapter, what acts beside it while training.
        owners: by adapter, whose companion it has or will have.
    """

    adapter_layer_names = ("eckart_adapters",)
    other_param_names = ("scaling", "configs", "seams", "companions", "owners")

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
        self.owners: dict[str, object] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def adapter(self, name: str) -> Adapter:
        """The adapter of a name."""
        return cast(Adapter, self.eckart_adapters[name])

    def add(self, name: str, adapter: Adapter, config: AdapterConfig) -> None:
        """Attach an adapter under a name."""
        self.eckart_adapters[name] = adapter
        self.scaling[name] = 1.0
        self.configs[name] = config
        # accelerate's: the weight itself may lie on the disk
        hook = getattr(self.base_layer, "_hf_hook", None)
        self._move_adapter_to_device_of_base_layer(name, getattr(hook, "execution_device", None))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def acting(self) -> list[str]:
        """The active adapters that are neither merged nor zero whatever their parameters are; none while disabled."""
        if self._disable_adapters:
            return []
        there = [name for name in self.active_adapters if name in self.eckart_adapters]
        return [name for name in there if name not in self.merged_adapters and not self.adapter(name).idle]

    def changed(self, names: Sequence[str]) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
        """The weight and the bias with what some adapters, and their companions, add to them."""
        weight, bias = self.op.to_matrix(self.frozen.stored), getattr(self.base_layer, "bias", None)
        for name in names:
            adapter, scaling, seam = self.adapter(name), self.scaling[name], self.seams.get(name)
            if seam is None:
                weight = adapter.fold(weight, scaling)
            else:
                delta = seam.delta(adapter, adapter.delta_weight())
                weight = torch.add(weight, delta.to(weight.dtype), alpha=scaling)
            if (companion := self._companion(name)) is not None:
                weight = weight + companion.delta_weight().to(weight.dtype)
            if (change := adapter.delta_bias()) is not None:
                bias = scaling * change if bias is None else torch.add(bias, change, alpha=scaling)
        return weight, bias

    def _companion(self, name: str) -> Companion | None:
        """What acts beside an adapter in this pass: only in training, and only where gradients are recorded."""
        return self.companions.get(name) if self.training and torch.is_grad_enabled() else None

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """ΔW of one adapter, scaled, in the layout of the base layer's weight."""
        delta = self.adapter(adapter_name).delta_weight() * self.scaling[adapter_name]
        if self.op.padding_idx is not None:  # the look-up of padding stays what it is
            delta = delta.index_fill(1, torch.tensor(self.op.padding_idx, device=delta.device), 0)
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
            self._merge(name, safe_merge)

    def _merge(self, name: str, safe_merge: bool) -> None:
        """Put what `_merged` gives in the place of the weight, and keep the one from before."""
        raise NotImplementedError

    def _merged(self, name: str, safe_merge: bool) -> Tensor:
        stored, delta = self.frozen.stored, self.get_delta_weight(name)
        wide = torch.promote_types(torch.promote_types(stored.dtype, delta.dtype), torch.float32)
        merged = (stored.to(wide) + delta.to(wide)).to(stored.dtype)
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
        return merged

    def unmerge(self) -> None:
        """Put back the very bits the base weight had before the first merge."""
        if not self.merged_adapters:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        assert self.frozen.original is not None
        self._put_back(self.frozen.original)
        self.frozen.original = None
        base: Any = self.get_base_layer()
        if self.frozen.original_bias is not getattr(base, "bias", None):
            base.bias = self.frozen.original_bias
        self.merged_adapters.clear()

    def _put_back(self, weight: Tensor) -> None:
        base: Any = self.get_base_layer()
        base.weight = weight

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
