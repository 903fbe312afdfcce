"""Adapters: ΔW for a frozen weight, every method a registered PEFT type.

The names are listed, with their types, in ``__init__.pyi``, which `make docs` writes: nothing but its own file names a
method.
"""

import importlib
import pkgutil

from eckart.adapters._adapt import adapt, make_config
from eckart.adapters._adapted import AdaptedWeight
from eckart.adapters._base import Adapter, LowRankAdapter
from eckart.adapters._budget import (
    Budget,
    parse_budget,
    saved_bytes,
    solve_budget,
    target_shapes,
    trainable_parameters,
)
from eckart.adapters._config import AdapterConfig
from eckart.adapters._export import export_lora
from eckart.adapters._from_peft import from_peft
from eckart.adapters._layers import LayerContext, LayerOp, LayerShape, Pool
from eckart.adapters._loading import load_adapted
from eckart.adapters._merging import merge_checkpoint
from eckart.adapters._peft_layer import EckartLayer
from eckart.adapters._prompts import InputSpace, Prompt, PromptConfig
from eckart.adapters._registry import ADAPTERS, PROMPTS, get_config, load_plugins, register_adapter
from eckart.adapters._seams import Companion, Seam
from eckart.adapters._walk import lr_scales, regularization, walk

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
load_plugins()

globals().update({config.__name__: config for config in (*ADAPTERS.values(), *PROMPTS.values())})

__all__ = [
    "ADAPTERS",
    "PROMPTS",
    "AdaptedWeight",
    "Adapter",
    "AdapterConfig",
    "Budget",
    "Companion",
    "EckartLayer",
    "InputSpace",
    "LayerContext",
    "LayerOp",
    "LayerShape",
    "LowRankAdapter",
    "Pool",
    "Prompt",
    "PromptConfig",
    "Seam",
    "adapt",
    "export_lora",
    "from_peft",
    "get_config",
    "load_adapted",
    "lr_scales",
    "make_config",
    "merge_checkpoint",
    "parse_budget",
    "register_adapter",
    "regularization",
    "saved_bytes",
    "solve_budget",
    "target_shapes",
    "trainable_parameters",
    "walk",
    *(config.__name__ for config in (*ADAPTERS.values(), *PROMPTS.values())),
]
