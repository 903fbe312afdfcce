"""FLoRA: stack the factors, which is exact; clients add the product to their base weight and start afresh.

    A = [p_1 s_1 A_1; …; p_K s_K A_K] (Σr_k, in)     B = [B_1, …, B_K] (out, Σr_k)     B A = Σ p_k s_k B_k A_k

Source: Wang et al., NeurIPS 2024, arXiv:2409.05976.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from eckart.federated._registry import FederatedStrategy, register_strategy
from eckart.federated._sums import Aggregate, LayerSum


@register_strategy(
    "flora-stacking",
    title="FLoRA",
    paper="Wang et al., 2024",
    arxiv="2409.05976",
    trains="A and B, each client at its own rank, afresh every round",
    saves="one LoRA of the rank that all rounds' updates have",
)
@dataclass(frozen=True)
class FLoRAStacking(FederatedStrategy):
    """Stack the factors: exact for any ranks, but clients download all of it and start each round afresh."""

    any_rank: ClassVar[bool] = True
    stacks: ClassVar[bool] = True

    def finish(self, sums: LayerSum) -> Aggregate:
        """The stacks as an update of the base weight."""
        return Aggregate(None, None, 1.0, sums.update())
