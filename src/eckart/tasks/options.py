"""What may be said of a task, by name; no torch, so that commands can refuse what is wrong before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from eckart.arguments import check_least
from eckart.errors import InputError

KINDS = (
    "text-classification",
    "regression",
    "multi-label",
    "causal-lm",
    "chat",
    "image-classification",
)
"""Names of the kinds of tasks: of `eckart.tasks.kinds`."""
KindName = Literal[
    "auto", "text-classification", "regression", "multi-label", "causal-lm", "chat", "image-classification"
]
LANGUAGE = ("causal-lm", "chat")
"""Kinds that need a language model."""


class TaskOptions(TypedDict, total=False):
    """What `eckart.compare`, `eckart adapt` and their like pass on to `load_task`.

    Keys:
        kind: one of `KINDS`, or "auto": as the data say.
        text_column, label_column: names of columns; found by their names when left out.
        sep, columns, encoding: how a text file is written.
        metric: the score that decides; ``module:function`` for one of your own.
        extract: what is compared of an answer: "last-number", "text" or ``module:function``.
        generate: test examples that chat models answer, for the exact match.
    """

    kind: str
    text_column: str | None
    label_column: str | None
    sep: str | None
    columns: str | None
    encoding: str
    metric: str | None
    extract: str | None
    generate: int


_OF_DATA = ("kind", "text_column", "label_column", "sep", "columns", "encoding")
"""Options that the examples themselves tell of."""


def beyond_data(options: TaskOptions) -> dict[str, object]:
    """Of these options those that are given and that no example tells of: with the task's fingerprint they say what
    decides the numbers."""
    return {name: value for name, value in options.items() if name not in _OF_DATA and value}


@dataclass(frozen=True)
class Words:
    """What a kind of task is told besides its data."""

    metric: str | None = None
    extract: str | None = None
    generate: int = 0


def check_kind(kind: str) -> None:
    """Refuse what is no kind of task.

    Raises:
        InputError: the name, and what is known.
    """
    if kind not in ("auto", *KINDS):
        raise InputError(f"--kind {kind}: choose auto, {', '.join(KINDS)}")


def check_words(kind: str, words: Words) -> None:
    """Refuse what does not go together, as far as it can be told without the data.

    Raises:
        InputError: naming the option.
    """
    check_least(0, generate=words.generate)
    if kind not in ("auto", "chat") and (words.generate or words.extract):
        option = "--generate" if words.generate else "--extract"
        raise InputError(f"{option} is for --kind chat, not {kind}: leave it out")
    if words.extract and ":" not in words.extract and words.extract not in ("last-number", "text"):
        raise InputError(f"--extract {words.extract}: choose last-number or text, or give module:function")
