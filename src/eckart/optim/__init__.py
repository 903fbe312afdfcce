"""Low-rank optimisers, as `torch.optim.Optimizer`: all weights train, the state is small.

`METHODS` lists them without importing torch; an optimiser is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eckart.face import lazy

if TYPE_CHECKING:
    from eckart.optim.dct_adamw import DCTAdamW
    from eckart.optim.galore import GaLore
    from eckart.optim.groups import hidden_groups
    from eckart.optim.per_layer import PerLayer
    from eckart.optim.spectron import Spectron
    from eckart.optim.together import Together
    from eckart.optim.trion import Trion


__all__ = ["METHODS", "DCTAdamW", "GaLore", "PerLayer", "Spectron", "Together", "Trion", "hidden_groups"]

METHODS: tuple[dict[str, str], ...] = (
    {
        "slug": "dct-lowrank",
        "name": "DCTAdamW",
        "family": "optim",
        "paper": "Modoranu et al., 2025",
        "arxiv": "2505.17967",
        "knob": "rank",
        "trains": "all weights; two moments of r coordinates of each gradient",
        "saves": "the moments and r integers a layer; the basis follows from its size",
        "summary": "AdamW in the r vectors of a fixed cosine basis that hold most of each gradient.",
    },
    {
        "slug": "galore",
        "name": "GaLore",
        "family": "optim",
        "paper": "Zhao et al., 2024",
        "arxiv": "2403.03507",
        "knob": "rank",
        "trains": "all weights; two moments of r coordinates of each gradient",
        "saves": "the moments and a projector (min(out, in), r) a layer",
        "summary": "AdamW in the leading singular vectors of each gradient, found anew every few hundred steps.",
    },
    {
        "slug": "spectron",
        "name": "Spectron",
        "family": "optim",
        "paper": "Janson, Oyallon & Belilovsky, 2026",
        "arxiv": "2602.12429",
        "knob": "lr",
        "trains": "the factors of low-rank layers; one momentum each",
        "saves": "the momenta and a vector for each factor",
        "summary": "Orthogonal steps of two factors whose size bounds the step of their product.",
    },
    {
        "slug": "trion",
        "name": "Trion",
        "family": "optim",
        "paper": "Modoranu et al., 2025",
        "arxiv": "2505.17967",
        "knob": "rank",
        "trains": "all weights; one momentum, orthogonalised in r coordinates",
        "saves": "the momentum and r integers a layer",
        "summary": "Muon whose orthogonalised momentum has rank r, in vectors of a fixed cosine basis.",
    },
)
"""What `eckart.methods()` says of each method."""


if not TYPE_CHECKING:  # a checker reads the imports above, and knows that there is nothing else
    __getattr__, __dir__ = lazy(__name__)
