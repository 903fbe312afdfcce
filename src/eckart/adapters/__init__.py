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
from eckart.adapters._peft_layer import EckartLayer
from eckart.adapters._registry import ADAPTERS, get_config, register_adapter

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")

from eckart.adapters._export import export_lora  # noqa: E402
from eckart.adapters._from_peft import from_peft  # noqa: E402 - it needs the methods
from eckart.adapters._merging import load_adapted, merge_checkpoint  # noqa: E402
from eckart.adapters.salt import regularization  # noqa: E402

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
    "Pool",
    "adapt",
    "export_lora",
    "from_peft",
    "get_config",
    "load_adapted",
    "make_config",
    "merge_checkpoint",
    "parse_budget",
    "register_adapter",
    "regularization",
    "saved_bytes",
    "solve_budget",
    "target_shapes",
    "trainable_parameters",
    *(config.__name__ for config in ADAPTERS.values()),
]
