"""Adapters: ΔW for a frozen weight, every method a registered PEFT type."""

import importlib
import pkgutil

from eckart.adapters._adapt import adapt, make_config
from eckart.adapters._base import Adapter, AdapterConfig, LowRankAdapter
from eckart.adapters._budget import (
    Budget,
    parse_budget,
    saved_bytes,
    solve_budget,
    target_shapes,
    trainable_parameters,
)
from eckart.adapters._layers import LayerContext, LayerOp, LayerShape, Pool
from eckart.adapters._peft import EckartLayer
from eckart.adapters._registry import ADAPTERS, MethodInfo, get_config, methods, register_adapter

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")

globals().update({config.__name__: config for config in ADAPTERS.values()})

__all__ = [
    "ADAPTERS",
    "Adapter",
    "AdapterConfig",
    "Budget",
    "EckartLayer",
    "LayerContext",
    "LayerOp",
    "LayerShape",
    "LowRankAdapter",
    "MethodInfo",
    "Pool",
    "adapt",
    "get_config",
    "make_config",
    "methods",
    "parse_budget",
    "register_adapter",
    "saved_bytes",
    "solve_budget",
    "target_shapes",
    "trainable_parameters",
    *(config.__name__ for config in ADAPTERS.values()),
]
