"""The bridge to PEFT for adapters of layers: its tuner, once for every method."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from eckart.adapters._adapted import AdaptedWeight
from eckart.adapters._base import Adapter
from eckart.adapters._census import PREFIX, aliases
from eckart.adapters._checkpoint import check_dtype, differs, same_size, weight_check
from eckart.adapters._config import AdapterConfig, find_pattern
from eckart.adapters._layers import FrozenWeight, LayerContext, LayerOp, LayerShape, Pool
from eckart.adapters._matrices import EckartMatrix, EckartParameters, refuse_mixed
from eckart.adapters._parameters import find_parameters
from eckart.adapters._peft_files import CheckpointTuner
from eckart.adapters._peft_layer import BASE, EckartLayer
from eckart.adapters._rehearsal import rehearse, rename_config
from eckart.adapters._targets import Described, describe_targets
from eckart.adapters._weighted import check_combination, combine
from eckart.errors import InputError

_QUANTISED_EPSILON, _FOUR_BITS_EPSILON = 2.0**-6, 2.0**-4
_FINE_TUNED = 0.1
"""Relative difference up to which a base weight counts as a fine-tuned one, on which a ΔW of its own may be used."""


class EckartTuner(CheckpointTuner):
    """Injects the adapters of one config. All are built and checked before the first layer is replaced, so that a
    refused config leaves the model as it was."""

    prefix = PREFIX
    tuner_layer_cls = AdaptedWeight
    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        config = cast(AdapterConfig, self.peft_config[adapter_name])
        if config.target_modules != DUMMY_TARGET_MODULES:
            config = cast(AdapterConfig, self._prepare_adapter_config(config, self.get_model_config(model)))
            if config.checkpoint is not None:
                rename_config(model, config)
            if state_dict and config.target_parameters:
                raise InputError("target_parameters are not known from tensors alone: use get_peft_model")
            self._prepared = self._build(
                describe_targets(model, config, state_dict), config, low_cpu_mem_usage
            )
            self._follow_forwards(model)
        with warnings.catch_warnings():
            # PEFT looks for the patterns among layers alone; `_check_pattern` has done so among parameters too.
            warnings.filterwarnings("ignore", "The following rank_pattern keys did not match", RuntimeWarning)
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)

    def _build(
        self, described: Sequence[Described], config: AdapterConfig, on_meta: bool
    ) -> dict[str, tuple[Adapter, LayerShape, LayerOp, FrozenWeight]]:
        shapes = [shape for shape, _, _ in described]
        for shape in shapes:
            config.check(shape)
        _check_pattern(config, shapes)
        pool = Pool(shapes)
        prepared = {}
        for shape, op, frozen in described:
            adapter = build_adapter(config, LayerContext(shape, op, config.seed, pool, frozen))
            if shape.stack and adapter.delta_bias() is not None:
                raise InputError(f"{config.slug} moves a bias, which {shape.stack} has not: leave it out")
            if not config.init_weights:
                adapter.randomize()
            prepared[shape.name] = (adapter, shape, op, frozen)
        if config.checkpoint is not None:
            rehearse(config, self.model, {name: adapter for name, (adapter, *_) in prepared.items()})
            config.checkpoint = None
        if on_meta:
            for adapter, *_ in prepared.values():
                for submodule in adapter.modules():
                    for name, parameter in list(submodule.named_parameters(recurse=False)):
                        submodule._parameters[name] = nn.Parameter(
                            parameter.to("meta"), parameter.requires_grad
                        )
        return prepared

    def _follow_forwards(self, model: nn.Module) -> None:
        """Let the shared modules of the adapter know when a forward pass of the model begins and ends."""
        pool = next(adapter.layer.pool for adapter, *_ in self._prepared.values())
        if pool.has_outputs:
            model.register_forward_pre_hook(pool.enter)
            model.register_forward_hook(pool.leave, always_call=True)

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        """As PEFT's, where parameters alone may be named."""
        config = cast(AdapterConfig, peft_config)
        known = model_config.get("model_type") in self.target_module_mapping
        if config.target_modules is None and config.target_parameters and not known:
            config.target_modules = set()
        return super()._prepare_adapter_config(config, model_config)

    def _create_and_replace(  # type: ignore[override]  # the configs are ours
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
            for name in aliases(self.model, target):
                _put(self.model, name, layer)

    def _inject_parameters(
        self, peft_config: PeftConfig, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        """Put the adapters of parameters into the model, as PEFT's own does for its LoRA."""
        config = cast(AdapterConfig, peft_config)
        found = find_parameters(model, config)
        for module in {id(t.module): t.module for t in found if t.module is t.host}.values():
            names, wrapper = aliases(model, module), EckartParameters(module)
            for name in names:
                _put(model, name, wrapper)
        for target in found:
            host = cast(EckartParameters, model.get_submodule(target.path))
            if target.parameter not in host.adapted:
                own = [entry[1:] for entry in self._prepared.values() if entry[1].stack == target.name]
                host.add(target.parameter, [EckartMatrix(*entry) for entry in own])
            for matrix in host.matrices(target.parameter):
                adapter, *_ = self._prepared.pop(matrix.shape.name)
                matrix.add(adapter_name, adapter, config)
        return [target.name for target in found]

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        """As PEFT's, for all names of a module that has several."""
        named = list(self.model.named_modules(remove_duplicate=False))
        wrapped = [
            (name, found) for name, found in named if isinstance(found, EckartLayer | EckartParameters)
        ]
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        for name, found in wrapped:
            _put(self.model, name, found.base_layer)
        return model

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Give every adapted layer the names of the adapters of a mixed batch, one for each row.

        Raises:
            InputError: in training, or a name that no layer has.
        """
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        if self.training:
            raise InputError("adapter_names is for inference: call model.eval() first")
        refuse_mixed(self)
        layers = [
            module for module in self.modules() if isinstance(module, EckartLayer | AuxiliaryTrainingWrapper)
        ]
        known = {name for layer in layers if isinstance(layer, EckartLayer) for name in layer.eckart_adapters}
        if unknown := sorted(set(names) - known - {BASE}):
            raise InputError(
                f"adapter_names holds {unknown[0]!r}, which is not in this model: it has {', '.join(sorted(known))}, "
                f"and {BASE} for none"
            )

        def inform(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
            rows = len(inputs[0])
            if rows % len(names):
                raise InputError(
                    f"adapter_names has {len(names)} names for a batch of {rows} rows: give one for each"
                )
            return inputs, {
                **named,
                "adapter_names": [name for name in names for _ in range(rows // len(names))],
            }

        handles = [layer.register_forward_pre_hook(inform, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        if isinstance(child, AuxiliaryTrainingWrapper | EckartParameters):  # what they hold is ready as it is
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
    ) -> None:
        """Add Σ wᵢ ΔWᵢ of some adapters as a new adapter, a LoRA, which is not made active.

        Args:
            adapters: their names.
            weights: wᵢ, one for each.
            adapter_name: of the new adapter.
            combination_type: ``"svd"``, ``"cat"`` or ``"linear"``; see `combine`.
            svd_rank: rank for ``"svd"``; the smallest exact one of each layer when None.

        Raises:
            InputError: a name that is not there or is taken, another number of weights, a combination that PEFT has and
                this has not, or as `combine`.
        """
        check_combination(self.peft_config, adapters, weights, adapter_name, combination_type, svd_rank)
        found = (module for module in self.model.modules() if isinstance(module, AdaptedWeight))
        layers = {layer.shape.name: layer for layer in found}
        configs = {name: cast(AdapterConfig, self.peft_config[name]) for name in adapters}
        shares = dict(zip(adapters, map(float, weights), strict=True))
        config, factors = combine(layers, configs, shares, combination_type, svd_rank)
        self.peft_config[adapter_name] = config
        self.inject_adapter(self.model, adapter_name)
        for name, pair in factors.items():
            state = dict(zip(("lora_A", "lora_B"), pair, strict=True))
            layers[name].adapter(adapter_name).load_state_dict(state)
        self.set_requires_grad(adapter_name, requires_grad=False)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set the module of a dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


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
        check_dtype(name, weight)
        if not torch.isfinite(weight).all():
            raise InputError(f"the weight of layer {name} holds NaN or Inf: repair the model first")
        check = weight_check(weight, _epsilon(weight, layer.base_weight))
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


def _epsilon(weight: Tensor, frozen: FrozenWeight) -> float:
    """The relative rounding of a frozen weight: of its dtype, or of the four or eight bits it is kept in."""
    if frozen.backend is None:
        return torch.finfo(weight.dtype).eps
    four = frozen.backend.backend_name == "bnb 4bit" or getattr(frozen.module.weight, "bits", 8) == 4
    return _FOUR_BITS_EPSILON if four else _QUANTISED_EPSILON


def _check_pattern(config: AdapterConfig, shapes: Sequence[LayerShape]) -> None:
    """Refuse a `rank_pattern` of which a part fits no layer."""
    for pattern in config.rank_pattern or ():
        names = {name for shape in shapes for name in (shape.name, shape.target)}
        if not any(find_pattern([pattern], name) for name in names):
            raise InputError(
                f"rank_pattern names {pattern!r}, which fits none of the layers that are adapted"
            )


def _called(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    """A hook that does nothing."""
