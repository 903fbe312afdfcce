"""Structured layers trained from scratch.

`METHODS` lists them without importing torch modules; layers are imported when they are first asked for, and
transformers only with the models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eckart.face import lazy

if TYPE_CHECKING:
    from eckart.layers._convert import convert, structured_layers, to_dense, trained_parameters
    from eckart.layers._cutting import cut, prune, recalibrate
    from eckart.layers._structured import StructuredLayer, StructuredLinear
    from eckart.layers.lost import LOSTLinear
    from eckart.layers.low_rank import LowRankLinear
    from eckart.layers.maestro import MaestroConv2d, MaestroLinear
    from eckart.layers.ordered_dropout import OrderedDropout
    from eckart.layers.relora import ReLoRA, ReLoRALinear
    from eckart.layers.s4d import S4D, S4DBlock, S4DKernel, S4DRecurrence, param_groups
    from eckart.layers.s4d_config import S4DConfig
    from eckart.layers.s4d_model import S4DForSequenceClassification, S4DModel
    from eckart.layers.s4d_trainer import S4DTrainer
    from eckart.layers.sltrain import SLTrainLinear


__all__ = [
    "METHODS",
    "S4D",
    "LOSTLinear",
    "LowRankLinear",
    "MaestroConv2d",
    "MaestroLinear",
    "OrderedDropout",
    "ReLoRA",
    "ReLoRALinear",
    "S4DBlock",
    "S4DConfig",
    "S4DForSequenceClassification",
    "S4DKernel",
    "S4DModel",
    "S4DRecurrence",
    "S4DTrainer",
    "SLTrainLinear",
    "StructuredLayer",
    "StructuredLinear",
    "convert",
    "cut",
    "param_groups",
    "prune",
    "recalibrate",
    "structured_layers",
    "to_dense",
    "trained_parameters",
]

METHODS: tuple[dict[str, str], ...] = (
    {
        "slug": "lost",
        "name": "LOSTLinear",
        "family": "layers",
        "paper": "Li et al., 2025",
        "arxiv": "2508.02668",
        "knob": "r",
        "trains": "two factors and a few whole columns of each layer",
        "saves": "the same, and which columns",
        "summary": "Low-rank factors and a few dense columns, both designed by one SVD of the start.",
    },
    {
        "slug": "maestro",
        "name": "Maestro",
        "family": "layers",
        "paper": "Horváth, Laskaridis, Rajput & Wang, 2024",
        "arxiv": "2308.14929",
        "knob": "gp_lambda",
        "trains": "two factors of each linear layer or convolution, their ranks in order of importance",
        "saves": "the same, and which ranks are left",
        "summary": "Factors of full rank, trained so that they can be cut to any size without training again.",
    },
    {
        "slug": "relora",
        "name": "ReLoRA",
        "family": "layers",
        "paper": "Lialin, Shivagunde, Muckatira & Rumshisky, 2024",
        "arxiv": "2307.05695",
        "knob": "r",
        "trains": "each layer's weight at first, then two factors that are merged into it every so many steps",
        "saves": "the dense weights; while it trains also the factors",
        "summary": "Full-rank pretraining by low-rank updates that are merged and begun anew.",
    },
    {
        "slug": "s4d",
        "name": "S4D",
        "family": "layers",
        "paper": "Gu, Gupta, Goel & Ré, 2022",
        "arxiv": "2206.11893",
        "knob": "d_state",
        "trains": "for each channel a diagonal linear system (A, B, C, D, Δ), and a linear layer that mixes channels",
        "saves": "all of it, in real numbers",
        "summary": "Sequence layer of diagonal state spaces: a long convolution in training, a recurrence in use.",
    },
    {
        "slug": "sltrain",
        "name": "SLTrainLinear",
        "family": "layers",
        "paper": "Han et al., 2024",
        "arxiv": "2406.02214",
        "knob": "r",
        "trains": "two factors and a fixed random share of the entries of each layer",
        "saves": "the factors, the entries' values and the seed of their places",
        "summary": "Low rank plus a random sparse part, trained from scratch with neither stored as a matrix.",
    },
)
"""What `eckart.methods()` says of each method."""


if not TYPE_CHECKING:  # a checker reads the imports above, and knows that there is nothing else
    __getattr__, __dir__ = lazy(__name__)
