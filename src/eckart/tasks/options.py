"""What may be said of a task, by name; no torch, so that commands can refuse what is wrong before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypedDict, get_args

from eckart.arguments import check_least
from eckart.errors import InputError

KindName = Literal[
    "auto",
    "text-classification",
    "regression",
    "multi-label",
    "causal-lm",
    "chat",
    "multiple-choice",
    "token-classification",
    "image-classification",
    "segmentation",
]
KINDS: tuple[str, ...] = get_args(KindName)[1:]
"""Names of the kinds of tasks: of `eckart.tasks.kinds`."""
RECIPES = {"metamath": "chat"}
"""Published protocols, with the kind of their task."""
LANGUAGE = ("causal-lm", "chat", "multiple-choice")
"""Kinds that need a language model."""
CLASSIFICATION = ("text-classification", "image-classification")
"""Kinds of one class for each example."""


AUTO = "auto"
"""Of a step's batch and its parts: as the memory allows."""
QUANTIZED = ("int8", "int4", "nf4")
"""How the linear layers of a frozen base may be kept."""


class MemoryOptions(TypedDict, total=False):
    """How a model is made to fit in memory, as `TaskOptions` says."""

    dtype: str
    quantize: str | None
    gradient_checkpointing: bool
    gradient_accumulation: int | str


class TaskOptions(MemoryOptions, total=False):
    """What `eckart.compare`, `eckart adapt` and their like pass on to `load_task`.

    Keys:
        kind: one of `KINDS`, or "auto": as the data say.
        text_column, label_column: names of columns; found by their names when left out.
        sep, columns, encoding: how a text file is written.
        metric: the score that decides; ``evaluate:NAME`` or ``module:function`` for another.
        extract: what is compared of an answer: "last-number", "text" or ``module:function``.
        generate: test examples that chat models answer, for the exact match.
        class_weights: "balanced": each class counts alike in the loss of a classifier.
        also: a file of general text, on which a language model is measured before and after training.
        lm_eval: tasks of lm-evaluation-harness, with commas, on which a trained language model is scored too.
        lm_eval_limit: documents of each of them at most.
        task: model, data, loss and score from a file, ``my_task.py:function``.
        recipe: a published protocol: one of `RECIPES`.
        dtype: of the frozen base: "fp32", "bf16" or "fp16"; adapters and head train in float32.
        quantize: "int8", "int4" or "nf4" keeps the base's linear layers in eight or four bits.
        gradient_checkpointing: compute activations again in the backward pass, instead of keeping them.
        gradient_accumulation: parts that each step's batch is computed in; "auto" for as few as the memory holds.
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
    class_weights: str | None
    also: str | None
    lm_eval: str | None
    lm_eval_limit: int | None
    task: str | None
    recipe: str | None


_OF_DATA = ("kind", "text_column", "label_column", "sep", "columns", "encoding")
"""Options that the examples themselves tell of."""


def beyond_data(options: TaskOptions) -> dict[str, object]:
    """Of these options those that are given and that no example tells of: with the task's fingerprint they say what
    decides the numbers."""
    plain: dict[str, object] = {
        field.name: field.default for kind in (Words, Memory) for field in fields(kind)
    }
    plain |= {"task": None, "recipe": None}
    return {name: value for name, value in options.items() if name not in _OF_DATA and value != plain[name]}


@dataclass(frozen=True)
class Words:
    """What a kind of task is told besides its data."""

    metric: str | None = None
    extract: str | None = None
    generate: int = 0
    class_weights: str | None = None
    also: str | None = None
    lm_eval: str | None = None
    lm_eval_limit: int | None = None


@dataclass(frozen=True)
class Memory:
    """How a model is made to fit: see `TaskOptions`.

    Raises:
        InputError: an option out of its range.
    """

    dtype: str = "fp32"
    quantize: str | None = None
    gradient_checkpointing: bool = False
    gradient_accumulation: int | str = 1

    def __post_init__(self) -> None:
        if self.dtype not in ("fp32", "bf16", "fp16"):
            raise InputError(f"--dtype {self.dtype}: choose fp32, bf16 or fp16")
        if self.quantize not in (None, *QUANTIZED):
            raise InputError(f"--quantize {self.quantize}: choose {', '.join(QUANTIZED)}, or leave it out")
        if not isinstance(self.gradient_checkpointing, bool):
            raise InputError(f"gradient_checkpointing is {self.gradient_checkpointing!r}: give True or False")
        if self.gradient_accumulation != AUTO:
            check_least(1, gradient_accumulation=self.gradient_accumulation)  # type: ignore[arg-type]

    def part(self, batch_size: int) -> int:
        """Examples of each part of a batch; at most, where the memory decides.

        Raises:
            InputError: parts of unequal size.
        """
        parts = 1 if self.gradient_accumulation == AUTO else int(self.gradient_accumulation)
        if batch_size % parts:
            raise InputError(
                f"--gradient-accumulation {parts} does not divide --batch-size {batch_size}: a "
                "step's batch is computed in so many equal parts"
            )
        return batch_size // parts


def memory_of(options: TaskOptions) -> Memory:
    """What the options say of memory."""
    known = {field.name for field in fields(Memory)}
    return Memory(**{name: value for name, value in options.items() if name in known})  # type: ignore[arg-type]


def sized(batch_size: int | str | None, default: int, options: TaskOptions) -> tuple[int, TaskOptions]:
    """The examples of a step, and the options: with "auto" as many as without it, in as few parts as the memory holds,
    so that neither the machine nor the method decides what a step is.

    Raises:
        InputError: no size, or parts beside "auto".
    """
    if isinstance(batch_size, str) and batch_size != AUTO:
        raise InputError(f"batch_size is {batch_size!r}: give a whole number of at least 1, or auto")
    if not isinstance(batch_size, str):
        check_least(1, batch_size=batch_size)
        return batch_size or default, options
    if (parts := options.get("gradient_accumulation", 1)) not in (1, AUTO):
        raise InputError(f"--batch-size auto beside --gradient-accumulation {parts}: leave one out")
    return default, {**options, "gradient_accumulation": AUTO}


def check_kind(kind: str) -> None:
    """Refuse what is no kind of task.

    Raises:
        InputError: the name, and what is known.
    """
    if kind not in ("auto", *KINDS):
        raise InputError(f"--kind {kind}: choose auto, {', '.join(KINDS)}")


def check_recipe(recipe: str | None, kind: str) -> str:
    """The kind of a recipe's task, or the kind that is given.

    Raises:
        InputError: no recipe of that name, or a kind that it is not of.
    """
    if recipe is None:
        return kind
    if recipe not in RECIPES:
        raise InputError(f"--recipe {recipe}: choose {', '.join(RECIPES)}")
    if kind not in ("auto", RECIPES[recipe]):
        raise InputError(f"--recipe {recipe} is of --kind {RECIPES[recipe]}, not {kind}: leave it out")
    return RECIPES[recipe]


def own_file(source: str) -> tuple[Path, str]:
    """The file and the function of a task of the user's own.

    Raises:
        InputError: no such file.
    """
    file, colon, function = source.rpartition(":")
    path = Path(file).expanduser()
    if not colon or path.suffix != ".py" or not path.is_file():
        raise InputError(f"--task {source}: give a Python file and a function in it, such as my_task.py:task")
    return path, function


def check_alone(task: str, **others: object) -> None:
    """Refuse a task of the user's own that is not there, and what it says itself.

    Raises:
        InputError: naming the option.
    """
    own_file(task)
    if given := next((name for name, value in others.items() if value is not None), None):
        raise InputError(
            f"--{given.replace('_', '-')} beside --task {task}, which says it itself: leave one out"
        )


def check_words(kind: str, words: Words) -> None:
    """Refuse what does not go together, as far as it can be told without the data.

    Raises:
        InputError: naming the option.
    """
    check_least(0, generate=words.generate)
    if kind not in ("auto", "chat") and (words.generate or words.extract is not None):
        option = "--generate" if words.generate else "--extract"
        raise InputError(f"{option} is for --kind chat, not {kind}: leave it out")
    if words.class_weights not in (None, "balanced"):
        raise InputError(f"--class-weights {words.class_weights}: choose balanced, or leave it out")
    if words.class_weights and kind not in ("auto", *CLASSIFICATION):
        raise InputError(f"--class-weights is for {' and '.join(CLASSIFICATION)}, not {kind}: leave it out")
    if words.also is not None and kind not in ("auto", *LANGUAGE):
        raise InputError(f"--also is for language models ({', '.join(LANGUAGE)}), not {kind}: leave it out")
    if words.lm_eval is not None and kind not in ("auto", *LANGUAGE):
        raise InputError(
            f"--lm-eval is for language models ({', '.join(LANGUAGE)}), not {kind}: leave it out"
        )
    if words.lm_eval_limit is not None:
        check_least(1, lm_eval_limit=words.lm_eval_limit)
        if words.lm_eval is None:
            raise InputError("--lm-eval-limit without --lm-eval: name the harness's tasks, or leave it out")
    if words.also is not None and not Path(words.also).expanduser().is_file():
        raise InputError(f"--also {words.also}: no such file; give a general text")
    if (
        words.extract is not None
        and ":" not in words.extract
        and words.extract not in ("last-number", "text")
    ):
        raise InputError(f"--extract {words.extract}: choose last-number or text, or give module:function")
