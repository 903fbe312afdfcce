"""Trained models made smaller: factorised or sliced layers that transformers loads.

`METHODS` lists them without importing torch; what else is here is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eckart.face import lazy

if TYPE_CHECKING:
    from eckart.compression._asked import COMPRESSORS
    from eckart.compression._compress import compress, compressor
    from eckart.compression._convolutions import DecoupledConv2d, FactorizedConv2d
    from eckart.compression._layers import FactorizedEmbedding, FactorizedLinear
    from eckart.compression._loram_files import load_pruned, save_pruned
    from eckart.compression._method import LayerRow
    from eckart.compression._report import Report
    from eckart.compression._saving import load, merge, report, save
    from eckart.compression._statistics import Statistics, gather
    from eckart.compression.afm import AFM, fuse
    from eckart.compression.loram import Pruning
    from eckart.compression.lord import LoRD
    from eckart.compression.modegpt import MoDeGPT
    from eckart.compression.pela import PELA, Distillation
    from eckart.compression.svd import PlainSVD, WhitenedSVD
    from eckart.compression.trp import TRP, TrainedRankPruning
    from eckart.compression.welore import WeLore, train_low_rank


__all__ = [
    "AFM",
    "COMPRESSORS",
    "METHODS",
    "PELA",
    "TRP",
    "DecoupledConv2d",
    "Distillation",
    "FactorizedConv2d",
    "FactorizedEmbedding",
    "FactorizedLinear",
    "LayerRow",
    "LoRD",
    "MoDeGPT",
    "PlainSVD",
    "Pruning",
    "Report",
    "Statistics",
    "TrainedRankPruning",
    "WeLore",
    "WhitenedSVD",
    "compress",
    "compressor",
    "fuse",
    "gather",
    "load",
    "load_pruned",
    "merge",
    "report",
    "save",
    "save_pruned",
    "train_low_rank",
]

METHODS: tuple[dict[str, str], ...] = (
    {
        "slug": "afm",
        "name": "AFM",
        "family": "compression",
        "paper": "Yu, Fu, Ding, Zhou & Wu, 2024",
        "arxiv": "2405.18146",
        "knob": "ratio",
        "trains": "nothing; meant to be fine-tuned afterwards",
        "saves": "two thin layers for each linear layer, a thin table and a decoder for each embedding",
        "summary": "Keep the leading directions of what a layer or an embedding table gives, not of its weights.",
    },
    {
        "slug": "lord",
        "name": "LoRD",
        "family": "compression",
        "paper": "Kaushal, Vaidhya & Rish, 2023",
        "arxiv": "2309.14021",
        "knob": "ratio",
        "trains": "nothing",
        "saves": "two thin layers for each linear layer, and a bias",
        "summary": "Keep the leading directions of each layer's outputs, their mean included.",
    },
    {
        "slug": "loram",
        "name": "LoRAM",
        "family": "compression",
        "paper": "Zhang et al., 2025",
        "arxiv": "2502.13533",
        "knob": "ratio",
        "trains": "a LoRA on a pruned model, for `eckart adapt --loram`",
        "saves": "the LoRA of the large model, and what was pruned",
        "summary": "Train a LoRA on a model with fewer neurons and heads, use it with the whole one.",
    },
    {
        "slug": "modegpt",
        "name": "MoDeGPT",
        "family": "compression",
        "paper": "Lin et al., 2024",
        "arxiv": "2408.09632",
        "knob": "ratio",
        "trains": "nothing",
        "saves": "smaller dense matrices, and which rotations the heads keep",
        "summary": "Cut the dimension inside pairs of matrices: MLP units, rotation pairs, value dimensions.",
    },
    {
        "slug": "pela",
        "name": "PELA",
        "family": "compression",
        "paper": "Guo, Wang & Kankanhalli, 2024",
        "arxiv": "2310.10700",
        "knob": "ratio",
        "trains": "the small model, with the dense one as teacher",
        "saves": "two thin layers for each linear layer",
        "summary": "Truncated SVD, then training with feature distillation and a cap on the weights' drift.",
    },
    {
        "slug": "svd",
        "name": "Truncated SVD",
        "family": "compression",
        "paper": "Eckart & Young, 1936; Halko, Martinsson & Tropp, 2011",
        "arxiv": "0909.4061",
        "knob": "ratio",
        "trains": "nothing",
        "saves": "two thin layers for each linear layer",
        "summary": "The best low-rank weight, whatever the inputs are: a baseline.",
    },
    {
        "slug": "trp",
        "name": "TRP",
        "family": "compression",
        "paper": "Xu et al., 2020",
        "arxiv": "2004.14566",
        "knob": "ratio",
        "trains": "the full convolutions, projected to low rank again and again",
        "saves": "two thin convolutions for each, or a sum of pointwise and depthwise ones",
        "summary": "Convolutions trained to be of low rank, then factorised by channels, by space, or decoupled.",
    },
    {
        "slug": "welore",
        "name": "WeLore",
        "family": "compression",
        "paper": "Jaiswal et al., 2024",
        "arxiv": "2407.11239",
        "knob": "ratio",
        "trains": "nothing; afterwards the low-rank components alone",
        "saves": "two thin layers for each low-rank component",
        "summary": "One threshold on normalised singular values gives every matrix its own rank; the rest stays dense.",
    },
    {
        "slug": "whitened-svd",
        "name": "Whitened SVD",
        "family": "compression",
        "paper": "Wang et al., 2024",
        "arxiv": "2403.07378",
        "knob": "ratio",
        "trains": "nothing",
        "saves": "two thin layers for each linear layer",
        "summary": "The best low-rank weight for the inputs that the layer sees (SVD-LLM): a baseline.",
    },
)
"""What `eckart.methods()` says of each method."""


if not TYPE_CHECKING:  # a checker reads the imports above, and knows that there is nothing else
    __getattr__, __dir__ = lazy(__name__)
