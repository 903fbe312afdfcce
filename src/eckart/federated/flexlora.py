"""FlexLoRA: the SVD of the mean product, cut to each client's rank.

    Σ p_k s_k B_k A_k = U Σ Vᵀ     client of rank r: s B A = U_r Σ_r V_rᵀ, B = U_r √Σ_r/√s, A = √Σ_r V_rᵀ/√s

The SVD is taken of QR factors of the stacks, a core (R, R) with R = Σ r_k, as FLoRIST does; its rule for the server's
rank, the fewest singular values that hold a share of the energy, is the option ``threshold``.

Source: Bai, Chen, Qian, Yao & Li, NeurIPS 2024, arXiv:2402.11505; threshold: FLoRIST, 2025, arXiv:2506.09199.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from eckart.errors import InputError
from eckart.federated._registry import FederatedStrategy, register_strategy
from eckart.federated._sums import Aggregate, LayerSum
from eckart.linalg.svd import rank_for_energy


@register_strategy(
    "flexlora",
    title="FlexLoRA",
    paper="Bai et al., 2024",
    arxiv="2402.11505",
    trains="A and B, each client at its own rank",
    saves="one LoRA of the highest rank, or of the rank that the threshold gives",
)
@dataclass(frozen=True)
class FlexLoRA(FederatedStrategy):
    """Decompose the mean product and give each client its leading part: the best for its rank.

    Args:
        threshold: keep the fewest singular values that hold this share of the squared norm, in (0, 1]. None keeps as
            many as the highest rank of the clients.
    """

    threshold: float | None = None

    any_rank: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise InputError(f"threshold is {self.threshold}: give a share in (0, 1], such as 0.99")

    def finish(self, sums: LayerSum) -> Aggregate:
        """The leading singular triplets, √Σ in each factor."""
        u, s, vh = sums.update().svd()
        if self.threshold is None or not s.any():
            r = min(max(sums.ranks), len(s))
        else:
            r = rank_for_energy(s, self.threshold)
        root = s[:r].sqrt()
        return Aggregate(root[:, None] * vh[:r], u[:, :r] * root, 1.0)
