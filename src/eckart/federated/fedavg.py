"""FedAvg of the merged weights: W₀ + Σ p_k s_k B_k A_k, the exact mean that the other strategies are measured against.

Source: McMahan, Moore, Ramage, Hampson & Agüera y Arcas, AISTATS 2017, arXiv:1602.05629.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from eckart.federated._products import ProductSum
from eckart.federated._registry import FederatedStrategy, register_strategy
from eckart.federated._sums import Aggregate, LayerSum


@register_strategy(
    "fedavg",
    title="FedAvg",
    paper="McMahan et al., 2017",
    arxiv="1602.05629",
    trains="A and B, each client at its own rank, afresh every round",
    saves="one LoRA of the rank that all rounds' updates have",
)
@dataclass(frozen=True)
class FedAvg(FederatedStrategy):
    """Average the merged weights: exact, and as many bytes as the layer itself."""

    any_rank: ClassVar[bool] = True

    def finish(self, sums: LayerSum) -> Aggregate:
        """The mean of the merged weights, less the base weight, as a matrix."""
        mean = sums.update().dense()
        return Aggregate(None, None, 1.0, ProductSum.of(mean, torch.eye(mean.shape[1])))
