"""Kinds of tasks, one file each: how examples are encoded, what a model says of them, and how well."""

from __future__ import annotations

from eckart.data.read import Data
from eckart.errors import InputError
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


def kind_of(data: Data, wanted: str) -> str:
    """The kind of task that data are for.

    Args:
        data: as they were read.
        wanted: a kind, or "auto".

    Raises:
        InputError: data for another kind, or for none.
    """
    found = next(name for name, kind in KINDS.items() if kind.reads[1] == data.target)
    if data.kind == "image":
        found = "image-classification"
    if data.kind == "image" and data.labels is None:
        raise InputError(f"--data {data.name} has images without labels; images are for classification")
    if wanted not in ("auto", found):
        raise InputError(f"--kind {wanted} does not suit --data {data.name}, which is for {found}")
    return found


__all__ = ["KINDS", "RECIPES", "Kind", "kind_of"]
