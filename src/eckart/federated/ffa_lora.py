"""FFA-LoRA: A is drawn once and frozen, so that averaging B is exact, Σ p_k B_k A = B̄ A.

Source: Sun, Li, Li & Ding, ICLR 2024, arXiv:2403.12313.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from eckart.errors import InputError
from eckart.federated._registry import FederatedStrategy, register_strategy
from eckart.federated._sums import Aggregate, LayerSum


@register_strategy(
    "ffa-lora",
    title="FFA-LoRA",
    paper="Sun et al., 2024",
    arxiv="2403.12313",
    trains="B; A is drawn once and shared",
    saves="one LoRA",
)
@dataclass(frozen=True)
class FFALoRA(FederatedStrategy):
    """Train B alone under one frozen A: unbiased, half the parameters, half the bytes."""

    freezes_a: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    def finish(self, sums: LayerSum) -> Aggregate:
        """(A, B̄).

        Raises:
            InputError: the clients' A differ.
        """
        mean_a, scaling = sums.mean_a(), sums.one_scaling(self.slug)
        if not sums.frozen_a:
            raise InputError("the clients' A differ: ffa-lora needs the same frozen A everywhere")
        return Aggregate(mean_a, sums.mean_b(), scaling)
