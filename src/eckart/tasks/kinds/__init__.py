"""Kinds of tasks, one file each: how examples are encoded, what a model says of them, and how well."""

from __future__ import annotations

from eckart.tasks.kinds.chat import Chat
from eckart.tasks.kinds.choice import MultipleChoice
from eckart.tasks.kinds.classes import ImageClassification, TextClassification
from eckart.tasks.kinds.kind import Kind
from eckart.tasks.kinds.language import CausalLM
from eckart.tasks.kinds.metamath import MetaMath
from eckart.tasks.kinds.numbers import MultiLabel, Regression
from eckart.tasks.kinds.segmentation import Segmentation
from eckart.tasks.kinds.tokens import TokenClassification

KINDS: dict[str, type[Kind]] = {
    kind.name: kind
    for kind in (
        TextClassification,
        Regression,
        MultiLabel,
        CausalLM,
        Chat,
        MultipleChoice,
        TokenClassification,
        ImageClassification,
        Segmentation,
    )
}
"""By name, as `--kind` takes it."""
RECIPES: dict[str, type[Kind]] = {"metamath": MetaMath}
"""By name, as `--recipe` takes it."""

__all__ = ["KINDS", "RECIPES", "Kind"]
