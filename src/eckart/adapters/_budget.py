"""Budgets: the largest knob whose count fits, from the config's own formula over the layers that are adapted."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from eckart.adapters._base import AdapterConfig
from eckart.adapters._layers import LayerShape
from eckart.adapters._peft import EckartTuner, find_targets
from eckart.adapters._peft_layer import EckartLayer
from eckart.arguments import BYTE_UNITS, PARAMETER_UNITS, read_budget
from eckart.errors import InputError


@dataclass(frozen=True)
class Budget:
    """An upper bound on trained numbers, or on the bytes a float32 checkpoint holds."""

    limit: int
    unit: Literal["parameters", "bytes"]


def parse_budget(budget: str | int, model_parameters: int) -> Budget:
    """Read ``"0.5%"`` (of the base model's parameters), ``"200k"``, ``"1.5M"``, ``"1MB"`` (10⁶ bytes), ``"1MiB"``.

    Args:
        budget: the text, or a whole number of parameters.
        model_parameters: how many parameters the base model has, for percentages.

    Raises:
        InputError: not a budget, or not positive.
    """
    value, unit = read_budget(budget)
    kind: Literal["parameters", "bytes"] = "parameters"
    if unit == "%":
        limit = int(value / 100 * model_parameters)
    elif unit in PARAMETER_UNITS:
        limit = int(value * PARAMETER_UNITS[unit])
    else:
        limit, kind = int(value * BYTE_UNITS[unit]), "bytes"
    if limit < 1:
        raise InputError(f"budget {str(budget)!r} comes to {limit} {kind}: give a larger one")
    return Budget(limit, kind)


def target_shapes(model: nn.Module, config: AdapterConfig) -> list[LayerShape]:
    """The shapes of the layers a config would adapt, in model order, without changing anything.

    Raises:
        InputError: nothing matches, or a matched layer cannot be adapted.
    """
    tuner = EckartTuner.__new__(EckartTuner)
    nn.Module.__init__(tuner)
    tuner.model = model
    return [
        tuner._describe(key, layer)[0] for key, layer in find_targets(model, resolve_targets(model, config))
    ]


def resolve_targets(model: nn.Module, config: AdapterConfig) -> AdapterConfig:
    """A copy of the config with ``target_modules`` as names, where it says "all-linear" or nothing."""
    from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers

    config = copy.deepcopy(config)
    if config.target_modules is None:
        model_type = BaseTuner.get_model_config(model).get("model_type", "custom")
        names = EckartTuner.target_module_mapping.get(model_type)
        if names is None:
            raise InputError(
                f"target_modules is not given and has no default for model type {model_type!r}: "
                "name the layers or 'all-linear'"
            )
        config.target_modules = names if isinstance(names, str) else set(names)
    _maybe_include_all_linear_layers(config, model)  # in place
    return config


def count_parameters(model: nn.Module) -> int:
    """Parameters of the base model, adapters and quantisation packing left out of account."""
    inside = {
        id(p)
        for layer in model.modules()
        if isinstance(layer, EckartLayer)
        for p in layer.eckart_adapters.parameters()
    }
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in inside)


def solve_budget(model: nn.Module, config: AdapterConfig, budget: str | int) -> AdapterConfig:
    """The config with its knob at the value whose count is the largest within the budget.

    Args:
        model: the base model, unchanged.
        config: the method and its options; the current value of its knob is ignored.
        budget: as `parse_budget`.

    Returns:
        A copy of the config with the knob set.

    Raises:
        InputError: no value fits; tells the smallest possible count.
    """
    wanted = parse_budget(budget, count_parameters(model))
    shapes = target_shapes(model, config)

    def cost(candidate: AdapterConfig) -> int:
        return (
            candidate.trainable_parameters(shapes)
            if wanted.unit == "parameters"
            else candidate.saved_bytes(shapes)
        )

    candidates = [replace(config, **{config.knob: value}) for value in config.knob_values(shapes)]
    costs = [cost(candidate) for candidate in candidates]
    fitting = [index for index, value in enumerate(costs) if value <= wanted.limit]
    if not fitting:
        least = f"{min(costs):,} {wanted.unit}" if costs else "no value of its knob suits every layer"
        raise InputError(
            f"budget {budget!r} ({wanted.limit:,} {wanted.unit}) cannot be met by {config.slug} on {len(shapes)} "
            f"layers: the smallest possible is {least}; raise the budget or target fewer layers"
        )
    return candidates[max(fitting, key=lambda index: costs[index])]


def trainable_parameters(model: nn.Module, adapter_name: str | None = None) -> int:
    """How many numbers of an adapter train, counted on the model; trained heads are not included.

    Args:
        model: a model with adapters.
        adapter_name: which adapter; the active ones when None.
    """
    seen: dict[int, int] = {}
    for layer in _layers(model):
        for name in [adapter_name] if adapter_name else layer.active_adapters:
            if name in layer.eckart_adapters:
                seen.update((id(p), p.numel()) for p in layer.eckart_adapters[name].parameters())
    return sum(seen.values())


def saved_bytes(model: nn.Module, adapter_name: str = "default") -> int:
    """Bytes of the adapter's tensors as `save_pretrained` writes them, without heads and file header.

    Args:
        model: a model with adapters.
        adapter_name: which adapter.
    """
    return sum(
        value.numel() * value.element_size()
        for layer in _layers(model)
        if adapter_name in layer.eckart_adapters
        for value in layer.eckart_adapters[adapter_name].state_dict().values()
    )


def _layers(model: nn.Module) -> list[EckartLayer]:
    layers = [module for module in model.modules() if isinstance(module, EckartLayer)]
    if not layers:
        raise InputError("this model has no adapter: make one with eckart.adapt or get_peft_model")
    return layers
