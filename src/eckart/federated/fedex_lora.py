"""FedEx-LoRA: send the averages, and add what they miss to the base weight everywhere.

    residual = s (Σ p_k B_k A_k − B̄ Ā), of rank at most (K + 1) r

Source: Singhal, Ponkshe & Vepakomma, 2024, arXiv:2410.09432.
"""

from __future__ import annotations

from dataclasses import dataclass

from eckart.federated._registry import FederatedStrategy, register_strategy
from eckart.federated._sums import Aggregate, LayerSum


@register_strategy(
    "fedex-lora",
    title="FedEx-LoRA",
    paper="Singhal et al., 2024",
    arxiv="2410.09432",
    trains="A and B",
    saves="one LoRA of the rank that all rounds' residuals have",
)
@dataclass(frozen=True)
class FedExLoRA(FederatedStrategy):
    """Send the averages and add their error to the base weight: exact, at the cost of the residual's bytes."""

    def finish(self, sums: LayerSum) -> Aggregate:
        """(Ā, B̄) and the residual."""
        a, b, scaling = sums.mean_a(), sums.mean_b(), sums.one_scaling(self.slug)
        residual = sums.update()
        residual.add(b, a, -scaling)
        return Aggregate(a, b, scaling, residual)
