"""Federated fine-tuning of LoRA: how a server makes one update of many.

The strategies are pure functions on factors and need torch alone; `flower` and `robust` run them over Flower. All of it
is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eckart.extras import require
from eckart.face import lazy

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

__all__ = [
    "METHODS",
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

_load, __dir__ = lazy(__name__)


def __getattr__(name: str) -> Any:
    if name in ("LoRAStrategy", "StreamingGrid"):
        require("flwr", extra="federated")
    return _load(name)
