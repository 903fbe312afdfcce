"""Federated fine-tuning of LoRA: how a server makes one update of many.

The strategies are pure functions on factors and need torch alone; `flower` and `robust` run them over Flower. All of it
is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eckart.federated._products import ProductSum
    from eckart.federated._registry import FederatedStrategy
    from eckart.federated._sums import Aggregate, LayerSum
    from eckart.federated.fedavg import FedAvg
    from eckart.federated.fedex_lora import FedExLoRA
    from eckart.federated.fedit import FedIT
    from eckart.federated.ffa_lora import FFALoRA
    from eckart.federated.flexlora import FlexLoRA
    from eckart.federated.flora_stacking import FLoRAStacking
    from eckart.federated.flower import LoRAStrategy, StreamingGrid
    from eckart.federated.hetlora import HetLoRA
    from eckart.federated.lora_fair import LoRAFAIR
    from eckart.federated.strategies import METHODS, STRATEGIES, aggregate, make_strategy

_CLASSES = {
    "FFALoRA": "ffa_lora",
    "FLoRAStacking": "flora_stacking",
    "FedAvg": "fedavg",
    "FedExLoRA": "fedex_lora",
    "FedIT": "fedit",
    "FlexLoRA": "flexlora",
    "HetLoRA": "hetlora",
    "LoRAFAIR": "lora_fair",
}
_FACE = _CLASSES | {
    "METHODS": "strategies",
    "STRATEGIES": "strategies",
    "Aggregate": "_sums",
    "FederatedStrategy": "_registry",
    "LayerSum": "_sums",
    "LoRAStrategy": "flower",
    "ProductSum": "_products",
    "StreamingGrid": "flower",
    "aggregate": "strategies",
    "make_strategy": "strategies",
}
SLUGS: tuple[str, ...] = tuple(sorted(module.replace("_", "-") for module in _CLASSES.values()))
"""Names of the strategies, known without torch."""

__all__ = [
    "METHODS",
    "SLUGS",
    "STRATEGIES",
    "Aggregate",
    "FFALoRA",
    "FLoRAStacking",
    "FedAvg",
    "FedExLoRA",
    "FedIT",
    "FederatedStrategy",
    "FlexLoRA",
    "HetLoRA",
    "LayerSum",
    "LoRAFAIR",
    "LoRAStrategy",
    "ProductSum",
    "StreamingGrid",
    "aggregate",
    "make_strategy",
]


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'eckart.federated' has no attribute {name!r}")
    if _FACE[name] == "flower":
        from eckart import extras

        extras.require("flwr", extra="federated")
    return getattr(importlib.import_module(f"eckart.federated.{_FACE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
