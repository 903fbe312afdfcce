"""What a config would adapt in a model: layers and parameters, each found to be one on which an adapter is right."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, cast

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_quantization_kwargs, resolve_quantization_backend
from torch import Tensor, nn

from eckart.adapters._adapted import AdaptedWeight
from eckart.adapters._census import (
    PLAIN_LAYERS,
    REASONS,
    check_names,
    fault,
    find_targets,
    include_all_linear,
    is_plain,
)
from eckart.adapters._config import AdapterConfig
from eckart.adapters._layers import FrozenWeight, LayerOp, LayerShape, describe_layer
from eckart.adapters._parameters import describe_parameter, find_parameters
from eckart.errors import InputError

Described = tuple[LayerShape, LayerOp, FrozenWeight]


def describe_targets(
    model: nn.Module, config: AdapterConfig, state_dict: dict[str, Tensor] | None = None
) -> list[Described]:
    """Shape, operation and frozen weight of each matrix that a config would adapt, in model order, layers before
    parameters; nothing is changed but "all-linear" in the config, which becomes names.

    Args:
        model: the model, with or without adapters on it.
        config: with ``target_modules``.
        state_dict: whose keys name the layers in the place of the config, where PEFT gives one.

    Raises:
        InputError: a name that matches nothing, or a layer or parameter on which an adapter could not be right.
    """
    sound = include_all_linear(model, config)
    found = list(find_targets(model, config, state_dict))
    layers = [name for name, _ in found]
    parameters = find_parameters(model, config)
    check_names(model, config, [*layers, *(target.name for target in parameters)])
    described = [_describe_layer(model, name, module, sound) for name, module in found]
    for target in parameters:
        described += describe_parameter(model, target, layers)
    return described


def _describe_layer(model: nn.Module, key: str, module: nn.Module, sound: Collection[str]) -> Described:
    """As `describe_targets`, for one layer; those in ``sound`` are known to have no `fault`."""
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    described = describe_layer(base, key)
    if described is None:
        raise InputError(
            f"layer {key} is a {type(base).__name__}, which cannot be adapted: target Linear, Conv1D, Conv1d, "
            "Conv2d, Conv3d or Embedding layers"
        )
    shape, op = described
    if isinstance(module, AdaptedWeight):
        return replace(shape, frozen=module.frozen), op, module.frozen
    if key not in sound and (why := fault(model, key, base)):
        raise InputError(f"layer {key} cannot be adapted: {why}; exclude it")
    backend = None
    if type(base) not in PLAIN_LAYERS or type(base.weight) not in (nn.Parameter, Tensor):
        kwargs = {"get_apply_tensor_subclass": _requantiser(base), **get_quantization_kwargs(model)}
        backend = resolve_quantization_backend(base, **kwargs)
    # PEFT and we follow the scale of an embedding that has one
    scaled = isinstance(base, nn.Embedding) and hasattr(base, "embed_scale")
    if backend is None and not is_plain(base) and not scaled:
        why = REASONS["forward"].format(kind=type(base).__name__)
        raise InputError(f"layer {key} cannot be adapted: {why}; exclude it")
    frozen = FrozenWeight(cast(Any, base), op, backend)
    return replace(shape, frozen=frozen), op, frozen


def _requantiser(module: nn.Module) -> Any:
    """How to quantise a weight again after a merge, when the model carries no quantisation config."""
    weight: Any = module.weight
    kind = type(weight).__name__
    int8 = kind == "Int8Tensor" and weight.act_quant_kwargs is None and weight.block_size[0] == 1

    def configuration() -> Any:
        from torchao.quantization import Int8WeightOnlyConfig  # type: ignore[import-untyped]

        if not int8:
            raise InputError(
                f"a weight of type {kind} cannot be quantised again after a merge: merge before quantising"
            )
        return Int8WeightOnlyConfig()

    return configuration
