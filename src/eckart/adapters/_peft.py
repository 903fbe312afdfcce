"""The one bridge to PEFT: its type enum, its tuner and its layer, once for every method."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftType
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_MIXED_MODEL_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _maybe_include_all_linear_layers,
    check_adapters_to_merge,
    check_target_module_exists,
)
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from eckart.adapters._base import Adapter, AdapterConfig
from eckart.adapters._checkpoint import compare_shapes, differs, same_size, weight_check
from eckart.adapters._layers import FrozenWeight, LayerContext, LayerOp, LayerShape, Pool, describe_layer
from eckart.errors import InputError

PREFIX = "eckart_"
_PLAIN_LAYERS = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
_WIDE = (torch.float32, torch.float64)
_QUANTISED_EPSILON = 2.0**-6
_FINE_TUNED = 0.1
"""Relative difference up to which a base weight counts as a fine-tuned one, on which a ΔW of its own may be used."""


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
        self._foldable = type(base_layer) in _PLAIN_LAYERS and frozen.backend is None

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


class EckartTuner(BaseTuner):
    """Injects the adapters of one config. All are built and checked before the first layer is replaced, so that a
    refused config leaves the model as it was."""

    prefix = PREFIX
    tuner_layer_cls = EckartLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        config = self.peft_config[adapter_name]
        if config.target_modules != DUMMY_TARGET_MODULES:
            config = self._prepare_adapter_config(config, self.get_model_config(model))
            _maybe_include_all_linear_layers(config, model)
            targets = list(find_targets(model, config, state_dict))
            self._prepared = self._build(targets, config, adapter_name, low_cpu_mem_usage)
        super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)

    def _build(
        self, targets: list[tuple[str, nn.Module]], config: AdapterConfig, adapter_name: str, on_meta: bool
    ) -> dict[str, tuple[Adapter, LayerShape, LayerOp, FrozenWeight]]:
        shapes, contexts = [], []
        for key, module in targets:
            shape, op, frozen = self._describe(key, module)
            config.check(shape)
            shapes.append(shape)
            contexts.append((shape, op, frozen))
        pool = Pool(shapes)
        prepared = {}
        for shape, op, frozen in contexts:
            adapter = build_adapter(config, LayerContext(shape, op, config.seed, pool, frozen))
            if not config.init_weights:
                adapter.randomize()
            prepared[shape.name] = (adapter, shape, op, frozen)
        if config.checkpoint_shapes is not None:
            expected = {
                f"base_model.model.{name}.eckart_adapters.{key}": tuple(value.shape)
                for name, (adapter, *_) in prepared.items()
                for key, value in adapter.state_dict().items()
            }
            compare_shapes(config.checkpoint_shapes, expected)
            config.checkpoint_shapes = None
        if on_meta:
            for adapter, *_ in prepared.values():
                for submodule in adapter.modules():
                    for name, parameter in list(submodule.named_parameters(recurse=False)):
                        submodule._parameters[name] = nn.Parameter(
                            parameter.to("meta"), parameter.requires_grad
                        )
        return prepared

    def _describe(self, key: str, module: nn.Module) -> tuple[LayerShape, LayerOp, FrozenWeight]:
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        described = describe_layer(base, key)
        if described is None:
            raise InputError(
                f"layer {key} is a {type(base).__name__}, which cannot be adapted: target Linear, Conv1D, Conv1d, "
                "Conv2d, Conv3d or Embedding layers"
            )
        shape, op = described
        if isinstance(module, EckartLayer):
            return shape, op, module.frozen
        if getattr(base, "max_norm", None) is not None:
            raise InputError(
                f"layer {key} rescales its own weight (max_norm={base.max_norm}): exclude it or clear max_norm"
            )
        if isinstance(base, NonDynamicallyQuantizableLinear):
            raise InputError(
                f"layer {key} is read by nn.MultiheadAttention and never called, so that an adapter on it has no "
                "effect: exclude it"
            )
        backend = None
        if type(base) not in _PLAIN_LAYERS or type(base.weight) not in (nn.Parameter, Tensor):
            kwargs = {"get_apply_tensor_subclass": _requantiser(base), **get_quantization_kwargs(self.model)}
            backend = resolve_quantization_backend(base, **kwargs)
        return shape, op, FrozenWeight(base, op, backend)

    def _create_and_replace(
        self,
        peft_config: AdapterConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        adapter, shape, op, frozen = self._prepared.pop(current_key)
        layer = target if isinstance(target, EckartLayer) else EckartLayer(target, shape, op, frozen)
        layer.add(adapter_name, adapter, peft_config)
        if layer is not target:
            if isinstance(parent, nn.TransformerEncoderLayer):
                # Its fast path reads the weight without calling the layer, unless the layer has a hook.
                layer.register_forward_pre_hook(_called)
            self._replace_module(parent, target_name, layer, target)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: AdapterConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        config._saved_check = {
            layer.shape.name: layer.eckart_adapters[adapter_name].base_check
            for layer in model.modules()
            if isinstance(layer, EckartLayer) and adapter_name in layer.eckart_adapters
        }
        return super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        inside = f".eckart_adapters.{adapter_name}."
        if inside in key:
            return key.replace(inside, ".eckart_adapters.")
        return super()._remove_adapter_name_from_key(key, adapter_name)


def build_adapter(config: AdapterConfig, layer: LayerContext) -> Adapter:
    """Build one adapter after the checks every method shares.

    Raises:
        InputError: the weight holds NaN or Inf, or is not the one the checkpoint was trained on.
    """
    name = layer.shape.name
    with torch.no_grad():
        weight = layer.base_weight().detach()
        if weight.is_meta:
            raise InputError(f"the weight of layer {name} is on the meta device: load the base model first")
        if not torch.isfinite(weight).all():
            raise InputError(f"the weight of layer {name} holds NaN or Inf: repair the model first")
        epsilon = (
            _QUANTISED_EPSILON if layer.base_weight.backend is not None else torch.finfo(weight.dtype).eps
        )
        check = weight_check(weight, epsilon)
        saved = (config.base_check or {}).get(name)
        if saved is not None and not same_size(saved, check):
            raise InputError(
                f"layer {name} is {tuple(weight.shape)}, not of the size this {config.slug} checkpoint was trained "
                "on: load it on its own base model"
            )
        if saved is not None and differs(saved, check):
            message = (
                f"the weight of layer {name} is not the one this {config.slug} checkpoint was trained on"
            )
            if config.needs_base or differs(saved, check, slack=_FINE_TUNED):
                raise InputError(f"{message}: load it on its own base model")
            warnings.warn(message, stacklevel=2)
        adapter = config.build(weight, layer)
    adapter.base_check = check
    return adapter


def find_targets(
    model: nn.Module, config: AdapterConfig, state_dict: dict[str, Tensor] | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """The layers that PEFT's matching rules give for this config, in model order.

    Raises:
        InputError: nothing matches; lists the names there are.
    """
    inside: list[str] = []
    found = False
    from_keys = state_dict and {
        key.rsplit(f".{PREFIX}", 1)[0].removeprefix("_orig_mod.") for key in state_dict
    }
    for key, module in model.named_modules():
        if not key or any(key.startswith(prefix) for prefix in inside):
            continue
        if isinstance(module, BaseTunerLayer):
            inside.append(key + ".")
        matches = key in from_keys if from_keys else check_target_module_exists(config, key)
        if matches:
            found = True
            yield key, module
    if not found:
        names = sorted(
            {
                key.rpartition(".")[2]
                for key, module in model.named_modules()
                if key and describe_layer(module, key)
            }
        )
        wanted = config.target_modules
        wanted = sorted(wanted) if isinstance(wanted, set) else wanted
        raise InputError(
            f"target_modules {wanted!r} match no layer of this model; layers there are: {', '.join(names) or 'none'}"
        )


def _called(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    """A hook that does nothing."""


def _requantiser(module: nn.Module) -> Any:
    """How to quantise a weight again after a merge, when the model carries no quantisation config."""
    weight, kind = module.weight, type(module.weight).__name__
    int8 = kind == "Int8Tensor" and weight.act_quant_kwargs is None and weight.block_size[0] == 1

    def configuration() -> Any:
        from torchao.quantization import Int8WeightOnlyConfig

        if not int8:
            raise InputError(
                f"a weight of type {kind} cannot be quantised again after a merge: merge before quantising"
            )
        return Int8WeightOnlyConfig()

    return configuration


def register_peft_type(config: type[AdapterConfig]) -> None:
    """Enter a config class into PEFT: a member of its type enum, and its tables of configs, tuners and prefixes."""
    name = f"{PREFIX}{config.slug}".replace("-", "_").upper()
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        type.__setattr__(PeftType, name, member)
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
    member = PeftType[name]
    config.peft_kind = member
    PEFT_TYPE_TO_CONFIG_MAPPING[member] = config
    PEFT_TYPE_TO_TUNER_MAPPING[member] = EckartTuner
    PEFT_TYPE_TO_MIXED_MODEL_MAPPING[member] = EckartTuner
    PEFT_TYPE_TO_PREFIX_MAPPING[member] = PREFIX
