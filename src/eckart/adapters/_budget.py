"""Budgets: the largest knob whose count fits, from the config's own formula over the layers that are adapted."""

from __future__ import annotations

import copy
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

from torch import nn

from eckart.adapters._adapted import AdaptedWeight
from eckart.adapters._checkpoint import MODEL_PREFIX
from eckart.adapters._config import AdapterConfig
from eckart.adapters._layers import LayerShape
from eckart.adapters._peft import EckartTuner
from eckart.adapters._prompt_layer import PromptLayer, input_space
from eckart.adapters._prompts import PromptConfig
from eckart.adapters._targets import describe_targets
from eckart.adapters._walk import walk_trained
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
    return [shape for shape, *_ in describe_targets(model, resolve_targets(model, config))]


def resolve_targets(model: nn.Module, config: AdapterConfig) -> AdapterConfig:
    """A copy of the config with the model type's own ``target_modules``, where it names none."""
    from peft.tuners.tuners_utils import BaseTuner

    config = copy.deepcopy(config)
    if config.target_modules is None:
        model_type = BaseTuner.get_model_config(model).get("model_type", "custom")
        names = EckartTuner.target_module_mapping.get(model_type)
        if names is None and not config.target_parameters:
            raise InputError(
                f"target_modules is not given and has no default for model type {model_type!r}: "
                "name the layers or 'all-linear'"
            )
        config.target_modules = names if isinstance(names, str) else set(names or ())
    return config


def count_parameters(model: nn.Module) -> int:
    """Parameters of the base model, adapters and quantisation packing left out of account."""
    inside = {
        id(p)
        for layer in model.modules()
        if isinstance(layer, AdaptedWeight | PromptLayer)
        for p in layer.eckart_adapters.parameters()
    }
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in inside)


C = TypeVar("C", bound=AdapterConfig | PromptConfig)


def solve_budget(model: nn.Module, config: C, budget: str | int) -> C:
    """The config with its knob at the value whose count is the largest within the budget. What is then left of it goes
    into single layers, one rank more each, as ``rank_pattern``.

    Args:
        model: the base model, unchanged.
        config: the method and its options; the current value of its knob is ignored.
        budget: as `parse_budget`.

    Returns:
        A copy of the config with the knob, and where the method's knob is a rank ``rank_pattern``, set; for a prompt
        with every size that was left open.

    Raises:
        InputError: no value fits; tells the smallest possible count.
    """
    wanted = parse_budget(budget, count_parameters(model))
    if isinstance(config, PromptConfig):
        space = input_space(model)
        limit = wanted.limit if wanted.unit == "parameters" else wanted.limit // 4
        return cast(C, config.fitted(space, limit))
    shapes = target_shapes(model, config)

    def cost(candidate: AdapterConfig) -> int:
        count = candidate.trainable_parameters if wanted.unit == "parameters" else candidate.saved_bytes
        return count(shapes)

    values = config.knob_values(shapes)
    values = values if isinstance(values, Sequence) else list(values)
    least, best = search_knob(
        values,
        lambda value: cost(replace(config, **{config.knob: value})),
        wanted.limit,
        monotone=config.monotone,
    )
    if best is None:
        told = f"{least:,} {wanted.unit}" if values else "no value of its knob suits every layer"
        raise InputError(
            f"budget {budget!r} ({wanted.limit:,} {wanted.unit}) cannot be met by {config.slug} on {len(shapes)} "
            f"layers: the smallest possible is {told}; raise the budget or target fewer layers"
        )
    solved = replace(config, **{config.knob: best})
    filled = _fill(solved, shapes, cost, wanted.limit) if config.knob == "r" and config.monotone else solved
    return cast(C, filled)


def search_knob(
    values: Sequence[Any], cost: Callable[[Any], int], limit: int, *, monotone: bool
) -> tuple[int, Any]:
    """The least cost there is, and the value of the largest one within the limit; None where none is."""
    if not values:
        return 0, None
    if not monotone:
        costs = [cost(value) for value in values]
        within = [index for index, value in enumerate(costs) if value <= limit]
        return min(costs), values[max(within, key=costs.__getitem__)] if within else None
    if (least := cost(values[0])) > limit:
        return least, None
    return least, values[bisect_right(values, limit, key=cost) - 1]


def _fill(
    config: AdapterConfig,
    shapes: Sequence[LayerShape],
    cost: Callable[[AdapterConfig], int],
    limit: int,
) -> AdapterConfig:
    """One rank more for each layer or stack of matrices, from the first, that the limit still has room for."""
    given = dict(config.rank_pattern or {})
    for shape in {shape.target: shape for shape in shapes}.values():
        more = {**given, re.escape(shape.target.removeprefix(MODEL_PREFIX)): config.rank(shape) + 1}
        with suppress(InputError):
            candidate = replace(config, rank_pattern=more)
            if config.pattern(shape) is None and cost(candidate) <= limit:
                given = more if candidate.rank(shape) > config.rank(shape) else given
    return replace(config, rank_pattern=given or None)


def trainable_parameters(model: nn.Module, adapter_name: str | None = None) -> int:
    """How many numbers of an adapter train, counted on the model; trained heads are not included.

    Args:
        model: a model with adapters.
        adapter_name: which adapter; the active ones when None.
    """
    seen = {
        id(parameter): parameter.numel()
        for adapter in walk_trained(model, adapter_name)
        for parameter in adapter.parameters()
    }
    return sum(seen.values())


def saved_bytes(model: nn.Module, adapter_name: str = "default") -> int:
    """Bytes of the adapter's tensors as `save_pretrained` writes them, without heads and file header.

    Args:
        model: a model with adapters.
        adapter_name: which adapter.
    """
    return sum(
        value.numel() * value.element_size()
        for adapter in walk_trained(model, adapter_name)
        for value in adapter.state_dict().values()
    )
