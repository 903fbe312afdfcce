"""What hidden states and weights say of themselves: norms, entropies, ranks, dimensions and likeness, batched.

The functions need torch alone; the torchmetrics classes are imported when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eckart.face import lazy
from eckart.metrics._states import normalised_states
from eckart.metrics.alpha_req import alpha_req
from eckart.metrics.cka import LinearCKA, linear_cka
from eckart.metrics.entropy import matrix_entropy, renyi_entropy
from eckart.metrics.geometry import anisotropy, two_nn
from eckart.metrics.matrix_nuclear_norm import matrix_nuclear_norm
from eckart.metrics.measured import METRICS, RAW_METRICS, measure_states
from eckart.metrics.norms import nuclear_norm, schatten_norm
from eckart.metrics.ranks import effective_rank, energy_rank, participation_ratio, rankme, stable_rank

if TYPE_CHECKING:
    from eckart.metrics.accumulated import (
        AlphaReQ,
        Anisotropy,
        EffectiveRank,
        EnergyRank,
        MatrixEntropy,
        MatrixNuclearNorm,
        NuclearNorm,
        ParticipationRatio,
        RankMe,
        RenyiEntropy,
        SchattenNorm,
        StableRank,
        TwoNN,
    )


__all__ = [
    "METHODS",
    "METRICS",
    "RAW_METRICS",
    "AlphaReQ",
    "Anisotropy",
    "EffectiveRank",
    "EnergyRank",
    "LinearCKA",
    "MatrixEntropy",
    "MatrixNuclearNorm",
    "NuclearNorm",
    "ParticipationRatio",
    "RankMe",
    "RenyiEntropy",
    "SchattenNorm",
    "StableRank",
    "TwoNN",
    "alpha_req",
    "anisotropy",
    "effective_rank",
    "energy_rank",
    "linear_cka",
    "matrix_entropy",
    "matrix_nuclear_norm",
    "measure_states",
    "normalised_states",
    "nuclear_norm",
    "participation_ratio",
    "rankme",
    "renyi_entropy",
    "schatten_norm",
    "stable_rank",
    "two_nn",
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


if not TYPE_CHECKING:  # a checker reads the imports above, and knows that there is nothing else
    __getattr__, __dir__ = lazy(__name__, {"torchmetrics": "metrics"})
