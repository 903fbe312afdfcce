"""The layer that stands in a model for each frozen one: its routes, merging and scaling, as PEFT expects of its own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eckart.adapters._base import Adapter, LowRankAdapter
from eckart.adapters._census import is_plain, probe_input
from eckart.adapters._config import AdapterConfig
from eckart.adapters._layers import FrozenWeight, LayerOp, LayerShape
from eckart.adapters._seams import Companion, Seam, hooked, perturbed, through_seam
from eckart.errors import InputError

BASE = "__base__"
"""In a mixed batch the name of a row that takes no adapter."""
_WIDE = (torch.float32, torch.float64)


class EckartLayer(nn.Module, BaseTunerLayer):
    """A frozen layer and its adapters: y = base(x) + Σ x ΔWᵀ, by the cheaper of two routes to the same numbers.

    Attributes:
        seams: by adapter, what stands between it and this layer.
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
        self.cast_input_dtype_enabled = True  # turned off by peft.helpers.disable_input_dtype_casting
        self.merged_adapters: list[str] = []
        self._foldable = is_plain(base_layer) and frozen.backend is None and op.padding_idx is None

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

    def __getattr__(self, name: str) -> Any:
        """What the frozen layer has and this one has not, such as the stride of a convolution."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "base_layer" not in self._modules:
                raise
            return getattr(self._modules["base_layer"], name)

    def forward(
        self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any
    ) -> Tensor:
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        if adapter_names is not None and not self._disable_adapters:
            return self._mixed(x, adapter_names, *args, **kwargs)
        active = [name for name in self.active_adapters if name in self.eckart_adapters]
        names = [n for n in active if n not in self.merged_adapters and not self.adapter(n).idle]
        if self._disable_adapters or not names:
            return cast(Tensor, self.base_layer(x, *args, **kwargs))
        if not args and not kwargs and not self.merged_adapters and self._is_plain():
            if self.op.kind == "linear" and x.dim() > 2:  # one flat product instead of several reshaped ones
                return self.forward(x.flatten(0, -2)).view(*x.shape[:-1], self.shape.out_features)
            if self._folds(x, names):
                return self._folded(x, names)
            dense = [c for c in map(self._companion, names) if c and not isinstance(c, LowRankAdapter)]
            if dense:
                return self._add_branches(perturbed(self, x, dense), x, names, perturbed=True)
        result: Tensor = self.base_layer(x, *args, **kwargs)
        return self._add_branches(result, x, names)

    def _add_branches(
        self, result: Tensor, x: Tensor, names: Sequence[str], perturbed: bool = False
    ) -> Tensor:
        """The base layer's result and the branches of some adapters, in the result's dtype; ``perturbed`` where dense
        companions are in the result already."""
        dtype = result.dtype
        if self.frozen.backend is not None:
            result = self.frozen.backend.maybe_clone_base_result(result)
        scale = self._get_embed_scale() if self.op.kind == "embedding" else None  # type: ignore[no-untyped-call]
        for name in names:
            result = self._add_branch(result, x, name, scale, perturbed)
        return result.to(dtype)

    def _mixed(self, x: Tensor, names: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        """A batch each of whose rows has an adapter of its own, or none."""
        if self.merged_adapters:
            raise InputError(
                f"adapter_names is given while {self.merged_adapters[0]!r} is merged: unmerge it first"
            )
        result: Tensor = self.base_layer(x, *args, **kwargs)
        pieces = result.clone()
        for name in {name for name in names if name in self.eckart_adapters}:
            rows = torch.tensor([row for row, own in enumerate(names) if own == name], device=x.device)
            pieces[rows] = self._add_branches(result[rows], x[rows], [name])
        return pieces

    def _is_plain(self) -> bool:
        """Whether the base layer is nothing but its weight, its bias and its operation."""
        return self._foldable and not hooked(self.base_layer) and "forward" not in self.base_layer.__dict__

    def _folds(self, x: Tensor, names: list[str]) -> bool:
        """Whether one product with W₀ + ΔW is asked for or, when the route is free, cheaper without losing digits."""
        asked = False
        for name in names:
            config = self.configs[name]
            if config.route == "factored" or (config.dropout and self.training):
                return False
            if hooked(self.adapter(name)):
                return False
            asked = asked or config.route == "folded"
        weight = self.frozen.stored
        if asked or weight.dtype not in _WIDE or torch.is_autocast_enabled(weight.device.type):
            return asked
        tokens = x.numel() if self.op.kind == "embedding" else x.numel() // x.shape[self.op.channels]
        costs = [self.adapter(name).multiply_adds(tokens) for name in names]
        return sum(factored - folded for factored, folded in costs) > 0

    def _folded(self, x: Tensor, names: list[str]) -> Tensor:
        adapters = [self.adapter(name) for name in names]

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
                    weight = weight + companion.delta_weight().to(weight.dtype)
                if (change := adapter.delta_bias()) is not None:
                    bias = scaling * change if bias is None else torch.add(bias, change, alpha=scaling)
            return self.op.apply(x, weight.reshape(self.shape.weight), bias)

        if torch.is_grad_enabled() and any(adapter.recompute for adapter in adapters):
            return cast(Tensor, checkpoint(product, x, use_reentrant=False, preserve_rng_state=False))
        return product(x)

    def _add_branch(
        self, result: Tensor, x: Tensor, name: str, embed_scale: Tensor | None, perturbed: bool
    ) -> Tensor:
        """The result and one adapter's branch, by the factored route."""
        adapter, scaling, seam = self.adapter(name), self.scaling[name], self.seams.get(name)
        branch = x
        if x.is_floating_point():
            p = self.configs[name].dropout
            branch = nn.functional.dropout(x, p) if p and self.training else x
            branch = self._cast_input_dtype(branch, adapter.dtype)
        if seam is None and embed_scale is None and self.op.padding_idx is None and not hooked(adapter):
            result = adapter.add_to(result, branch, scaling)
        else:
            y = adapter(branch) if seam is None else through_seam(seam, adapter, branch)
            y = y if self.op.padding_idx is None else y * (x != self.op.padding_idx).unsqueeze(-1)
            result = torch.add(
                result, y if embed_scale is None else embed_scale.to(y.dtype) * y, alpha=scaling
            )
        if (companion := self._companion(name)) is not None:
            whole = self._cast_input_dtype(x, adapter.dtype) if x.is_floating_point() else x
            if isinstance(companion, LowRankAdapter):
                result = companion.add_to(result, whole, 1.0)
            elif not perturbed:
                delta = companion.delta_weight().reshape(self.shape.weight).to(branch.dtype)
                result = result + self.op.apply(whole, delta)
        if (bias := adapter.delta_bias()) is not None:
            over = [1] * (len(self.shape.weight) - 2) if self.op.kind == "conv" else []
            result = result + scaling * bias.to(result.dtype).view(-1, *over)
        return result

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

    @torch.no_grad()
    def _merge(self, name: str, safe_merge: bool) -> None:
        backend, stored, delta = self.frozen.backend, self.frozen.stored, self.get_delta_weight(name)
        wide = torch.promote_types(torch.promote_types(stored.dtype, delta.dtype), torch.float32)
        merged = (stored.to(wide) + delta.to(wide)).to(stored.dtype)
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
        base: Any = self.get_base_layer()
        before, bias_before, expected = base.weight, getattr(base, "bias", None), self._expected(name)
        try:
            if backend is None:
                # A parameter of its own, so that a layer that shared the old one keeps it.
                base.weight = nn.Parameter(merged, requires_grad=before.requires_grad)
            else:
                self.set_base_weight(merged)
            if (change := self.adapter(name).delta_bias()) is not None:
                self._add_to_bias(self.scaling[name] * change)
            if expected is not None:
                self._compare(name, *expected)
        except Exception:
            base.weight = before
            if getattr(base, "bias", None) is not bias_before:
                base.bias = bias_before
            raise
        if self.frozen.original is None:
            self.frozen.original, self.frozen.original_bias = before, bias_before
        self.frozen.module = cast(Any, self.get_base_layer())
        self.merged_adapters.append(name)

    def _expected(self, name: str) -> tuple[Tensor, Tensor, Tensor] | None:
        """A small input, the layer's output for it and with an adapter that is not merged yet; None where the weight is
        not at hand or is rounded again by the merge."""
        weight = self.get_base_layer().weight
        if self.frozen.backend is not None or hasattr(weight, "full_tensor") or weight.is_meta:
            return None
        x, training = probe_input(self.op, weight, self.shape.weight), self.training
        self.training = False
        try:
            plain = self.base_layer(x)
            return x, plain, self._add_branches(plain, x, [name])
        finally:
            self.training = training

    def _compare(self, name: str, x: Tensor, plain: Tensor, expected: Tensor) -> None:
        """Refuse a merge after which the layer gives something else, beyond the rounding of the merged weight.

        Raises:
            InputError: it does.
        """
        found = self.base_layer(x).double()
        difference = (found - expected.double()).abs().max()
        branch = (expected.double() - plain.double()).abs().max()
        epsilon = torch.finfo(expected.dtype).eps
        rounding = max(epsilon, 1e-6) * 16 * (found.abs().max() + branch)
        if difference > rounding and difference > 0.02 * branch:
            raise InputError(
                f"layer {self.shape.name} gives other outputs once {name!r} is merged (off by {difference:.2g} where "
                f"the adapter changes {branch:.2g}): something else acts on its weight or its output; leave it unmerged"
            )

    def _add_to_bias(self, change: Float[Tensor, " out"]) -> None:
        base: Any = self.get_base_layer()
        bias = change.to(base.weight.dtype) if base.bias is None else base.bias + change.to(base.bias.dtype)
        base.bias = nn.Parameter(bias.detach(), requires_grad=False)

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
