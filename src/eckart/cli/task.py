"""Options that say what a task is: those of every command that trains and scores on data of the user's."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from eckart.cli import words
from eckart.cli.options import (
    MODEL_AND_DATA,
    TRAINING,
    Columns,
    Encoding,
    Kind,
    LabelColumn,
    Limit,
    Sep,
    TextColumn,
    flag,
    option,
)
from eckart.tasks.options import Memory, Words, check_alone, check_words

ALWAYS = ("kind", "text_column", "label_column")
"""What a run's file names whether it is said or not."""


@dataclass(frozen=True)
class TaskArguments:
    """The options, as they are written."""

    kind: Kind = "auto"
    text_column: TextColumn = None
    label_column: LabelColumn = None
    sep: Sep = None
    columns: Columns = None
    encoding: Encoding = "utf-8"
    limit: Limit = None
    metric: Annotated[
        str | None,
        option(
            "NAME",
            "The score that decides, such as macro_f1 or auroc, evaluate:NAME or module:function; the others stand "
            "beside it.",
            MODEL_AND_DATA,
        ),
    ] = None
    extract: Annotated[
        str | None,
        option(
            "NAME",
            "What is compared of an answer (chat): last-number, text or module:function; as the answers look.",
            MODEL_AND_DATA,
        ),
    ] = None
    generate: Annotated[
        int, option("N", "Test examples that are answered, for the exact match (chat).", MODEL_AND_DATA)
    ] = 0
    class_weights: Annotated[
        str | None,
        option("NAME", "balanced: each class counts alike in the loss (classification).", MODEL_AND_DATA),
    ] = None
    also: Annotated[
        str | None,
        option(
            "FILE",
            "General text on which a language model is measured before and after: what it has forgotten.",
            MODEL_AND_DATA,
        ),
    ] = None
    lm_eval: Annotated[
        str | None,
        option(
            "TASKS",
            "Tasks of lm-evaluation-harness, with commas, on which a trained language model is scored too.",
            MODEL_AND_DATA,
        ),
    ] = None
    lm_eval_limit: Annotated[
        int | None, option("N", "Documents of each of these tasks at most.", MODEL_AND_DATA)
    ] = None
    task: Annotated[
        str | None,
        option(
            "FILE:FUNCTION",
            "Model, data, loss and score from a Python file of yours, such as my_task.py:task.",
            MODEL_AND_DATA,
        ),
    ] = None
    dtype: Annotated[
        str | None,
        option(
            "NAME", "Of the frozen base: fp32, the usual one, bf16 or fp16; what trains is in fp32.", TRAINING
        ),
    ] = None
    quantize: Annotated[
        str | None,
        option(
            "NAME", "int8, int4 or nf4 keeps the linear layers of the base in eight or four bits.", TRAINING
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool,
        flag(
            "--gradient-checkpointing",
            help="Compute activations twice instead of keeping them.",
            panel=TRAINING,
        ),
    ] = False
    gradient_accumulation: Annotated[
        str, option("N", "Equal parts that each step's batch is computed in; auto: as few as fit.", TRAINING)
    ] = "1"

    def given(self) -> dict[str, Any]:
        """What `eckart.tasks.task.load_task` is told, and what of it can be refused by itself is refused.

        Raises:
            InputError: naming an option.
        """
        form = words.fields(self.sep, self.columns, self.encoding)
        known = {field.name for field in fields(Words)}
        said = {name: value for name, value in asdict(self).items() if name in known}
        check_words(self.kind, Words(**said))
        if self.task is not None:
            beside = ("text_column", "label_column", "metric", "class_weights", "also", "lm_eval")
            check_alone(self.task, **{name: getattr(self, name) for name in beside})
        parts = words.count_or_auto("--gradient-accumulation", self.gradient_accumulation)
        Memory(
            "fp32" if self.dtype is None else self.dtype,
            self.quantize,
            self.gradient_checkpointing,
            parts or 1,
        )
        values = {name: value for name, value in asdict(self).items() if name != "limit"}
        plain = {field.name: field.default for field in fields(self)}
        given = {name: value for name, value in values.items() if name in ALWAYS or value != plain[name]}
        found = {name: value for name, value in given.items() if name not in ("sep", "columns", "encoding")}
        if "gradient_accumulation" in found:
            found["gradient_accumulation"] = parts
        return {**found, **form, "limits": words.limits(self.limit)}
