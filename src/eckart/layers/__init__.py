"""Structured layers trained from scratch.

`METHODS` lists them without importing torch modules; layers are imported when they are first asked for, and
transformers only with the models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eckart.face import lazy

if TYPE_CHECKING:
    from eckart.layers.s4d import S4D, S4DBlock, S4DKernel, S4DRecurrence, param_groups
    from eckart.layers.s4d_config import S4DConfig
    from eckart.layers.s4d_model import S4DForSequenceClassification, S4DModel
    from eckart.layers.s4d_trainer import S4DTrainer


__all__ = [
    "METHODS",
    "S4D",
    "S4DBlock",
    "S4DConfig",
    "S4DForSequenceClassification",
    "S4DKernel",
    "S4DModel",
    "S4DRecurrence",
    "S4DTrainer",
    "param_groups",
]

METHODS: tuple[dict[str, str], ...] = (
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
)
"""What `eckart.methods()` says of each method."""


__getattr__, __dir__ = lazy(__name__)
