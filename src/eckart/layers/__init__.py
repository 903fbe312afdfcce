"""Structured layers trained from scratch.

`METHODS` lists them without importing torch modules; layers are imported when they are first asked for, and
transformers only with the models.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eckart.layers.s4d import S4D, S4DBlock, S4DKernel, S4DRecurrence, param_groups
    from eckart.layers.s4d_config import S4DConfig
    from eckart.layers.s4d_model import S4DForSequenceClassification, S4DModel
    from eckart.layers.s4d_trainer import S4DTrainer

_FACE = {
    "S4D": "s4d",
    "S4DBlock": "s4d",
    "S4DConfig": "s4d_config",
    "S4DForSequenceClassification": "s4d_model",
    "S4DKernel": "s4d",
    "S4DModel": "s4d_model",
    "S4DRecurrence": "s4d",
    "S4DTrainer": "s4d_trainer",
    "param_groups": "s4d",
}

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


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'eckart.layers' has no attribute {name!r}")
    return getattr(importlib.import_module(f"eckart.layers.{_FACE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
