"""HetLoRA's zero padding: factors of different ranks are padded with zeros, averaged, and cut to each client's rank.

Source: Cho, Liu, Xu, Fahrezi & Joshi, EMNLP 2024, arXiv:2401.06432 (without its pruning of ranks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from eckart.federated._registry import FederatedStrategy, register_strategy
from eckart.federated._sums import Aggregate, LayerSum


@register_strategy(
    "hetlora",
    title="HetLoRA",
    paper="Cho et al., 2024",
    arxiv="2401.06432",
    trains="A and B, each client at its own rank",
    saves="one LoRA of the highest rank",
)
@dataclass(frozen=True)
class HetLoRA(FederatedStrategy):
    """Pad factors of different ranks with zeros and average them: biased, and it fades what few clients hold."""

    any_rank: ClassVar[bool] = True

    def finish(self, sums: LayerSum) -> Aggregate:
        """(Ā, B̄) of the padded factors."""
        return Aggregate(sums.mean_a(), sums.mean_b(), sums.one_scaling(self.slug, one_rank=False))
