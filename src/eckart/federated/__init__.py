"""Federated fine-tuning of LoRA: how a server makes one update of many.

The strategies are pure functions on factors and need torch alone; what runs them over Flower is imported when it is
first asked for.
"""

from __future__ import annotations

from eckart.federated._products import ProductSum
from eckart.federated._registry import STRATEGIES, FederatedStrategy, aggregate, make_strategy, summary
from eckart.federated._sums import Aggregate, LayerSum
from eckart.federated.fedavg import FedAvg
from eckart.federated.fedex_lora import FedExLoRA
from eckart.federated.fedit import FedIT
from eckart.federated.ffa_lora import FFALoRA
from eckart.federated.flexlora import FlexLoRA
from eckart.federated.flora_stacking import FLoRAStacking
from eckart.federated.hetlora import HetLoRA
from eckart.federated.lora_fair import LoRAFAIR

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
    "ProductSum",
    "aggregate",
    "make_strategy",
]

METHODS: tuple[dict[str, str], ...] = tuple(summary(kind) for _, kind in sorted(STRATEGIES.items()))
"""What `eckart.methods()` says of each strategy."""
