"""What hidden states and weights say of themselves: nuclear norm, entropy and ranks, batched.

The functions need torch alone; the torchmetrics classes are imported when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eckart.face import lazy
from eckart.metrics._states import normalised_states
from eckart.metrics.entropy import matrix_entropy, renyi_entropy
from eckart.metrics.matrix_nuclear_norm import matrix_nuclear_norm
from eckart.metrics.measured import METRICS, measure_states
from eckart.metrics.norms import nuclear_norm, schatten_norm
from eckart.metrics.ranks import effective_rank, energy_rank, stable_rank

if TYPE_CHECKING:
    from eckart.metrics.accumulated import (
        EffectiveRank,
        EnergyRank,
        MatrixEntropy,
        MatrixNuclearNorm,
        NuclearNorm,
        RenyiEntropy,
        SchattenNorm,
        StableRank,
    )


__all__ = [
    "METHODS",
    "METRICS",
    "EffectiveRank",
    "EnergyRank",
    "MatrixEntropy",
    "MatrixNuclearNorm",
    "NuclearNorm",
    "RenyiEntropy",
    "SchattenNorm",
    "StableRank",
    "effective_rank",
    "energy_rank",
    "matrix_entropy",
    "matrix_nuclear_norm",
    "measure_states",
    "normalised_states",
    "nuclear_norm",
    "renyi_entropy",
    "schatten_norm",
    "stable_rank",
]

METHODS: tuple[dict[str, str], ...] = (
    {
        "slug": "matrix-nuclear-norm",
        "name": "matrix_nuclear_norm",
        "family": "metrics",
        "paper": "Li et al., 2025",
        "arxiv": "2410.10672",
        "knob": "D",
        "trains": "nothing: it measures the hidden states of a text",
        "saves": "nothing",
        "summary": "Sum of the largest column norms of normalised hidden states: a stand-in for the nuclear norm.",
    },
)
"""What `eckart.methods()` says of each method."""


__getattr__, __dir__ = lazy(__name__, {"torchmetrics": "metrics"})
