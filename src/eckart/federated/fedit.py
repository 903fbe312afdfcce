"""FedIT: average A and B on their own, ΔW ≈ s B̄ Ā.

    Ā = Σ p_k A_k (r, in)     B̄ = Σ p_k B_k (out, r)     bias: s Σ p_k (B_k − B̄)(A_k − Ā)

Source: Zhang et al., 2023, arXiv:2305.05644.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from eckart.federated._registry import FederatedStrategy, register_strategy
from eckart.federated._sums import Aggregate, LayerSum


@register_strategy(
    "fedit",
    title="FedIT",
    paper="Zhang et al., 2023",
    arxiv="2305.05644",
    trains="A and B",
    saves="one LoRA",
)
@dataclass(frozen=True)
class FedIT(FederatedStrategy):
    """Average A and B on their own: cheap, and biased, since the mean of products is not the product of means."""

    linear: ClassVar[bool] = True

    def finish(self, sums: LayerSum) -> Aggregate:
        """(Ā, B̄)."""
        return Aggregate(sums.mean_a(), sums.mean_b(), sums.one_scaling(self.slug))
