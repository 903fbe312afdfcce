"""Conversations as PEFT's MetaMathQA board has them: a base model learns question and answer, and is scored on GSM8K.

Source of the protocol (facts, no code): huggingface/peft, method_comparison/MetaMathQA: data.py at commit d9e56aa,
default_training_params.json at 4192101, run.py at 026d1e0, utils.py at 0134244.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any, ClassVar

from eckart.data.read import Data
from eckart.data.splits import Split
from eckart.tasks.encode import opening
from eckart.tasks.kinds.chat import Chat, Conversations
from eckart.tasks.kinds.kind import Encoded, Shrink
from eckart.tasks.options import Words
from eckart.tasks.pretrained import Checkpoint

LETTERS = 1300
"""Of question and answer together, with the blank between them: what is longer is not trained on."""
NEW_TOKENS = 300
"""Of an answer that is generated, at most."""
QUERY = "Question: {query} Think step by step.\nAnswer:"
TEMPLATE = (
    "{%% for message in messages %%}{%% if message['role'] == 'assistant' %%}"
    "{{ message['content'] }}{{ eos_token or '' }}"
    "{%% else %%}%sQuestion: {{ message['content'] }} Think step by step.\nAnswer:{%% endif %%}{%% endfor %%}"
)
MARKS = ("The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### ")
"""What stands before an answer; the first of these that a text has counts."""


class MetaMath(Chat):
    """Chat by one prompt for every model, with the loss on every token of the train split."""

    training: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"lr_scheduler_type": "cosine", "weight_decay": 0.1, "max_grad_norm": 1.0}
    )

    def __init__(self, data: Data, words: Words) -> None:
        super().__init__(data, words)
        if words.extract is None:
            self.extract_name, self.extract = "metamath", final_answer

    def encode(self, checkpoint: Checkpoint, model: Any, max_length: int, shrink: Shrink) -> Encoded:
        """As `Chat`, the answers that are generated of at most `NEW_TOKENS`."""
        encoded = super().encode(checkpoint, model, max_length, shrink)
        self.answer_tokens = NEW_TOKENS
        return encoded

    def write_by(self, tokenizer: Any) -> None:
        """One template for every model; it begins with the token that the tokenizer begins a text with, if any."""
        tokenizer.chat_template = TEMPLATE % ("{{ bos_token }}" if opening(tokenizer) else "")

    def _encoded(self, split: Split, part: str, max_length: int) -> Conversations:
        if part != "train":
            return super()._encoded(split, part, max_length)
        kept = [
            i for i, told in enumerate(split.inputs) if len(" ".join(m["content"] for m in told)) <= LETTERS
        ]
        if gone := len(split) - len(kept):
            self.data.notes.append(f"train: {gone:,} of {len(split):,} are longer than {LETTERS:,} letters")
        found = super()._encoded(split.take(kept), part, max_length)
        found.rows = [{**row, "labels": row["input_ids"]} for row in found.rows]
        return found


def final_answer(text: str) -> float | str | None:
    """The answer of a solution: what stands behind its mark to the end of the line, as a number where it is one."""
    text = text.strip().rstrip(".!?")
    mark = next((mark for mark in MARKS if mark in text), None)
    if mark is None:
        return None
    told = text.rpartition(mark)[2].strip().partition("\n")[0].strip(" .!?$%")
    try:
        above, slash, below = told.partition("/")
        return float(Decimal(above.strip()) / Decimal(below.strip()) if slash else Decimal(told))
    except (InvalidOperation, ZeroDivisionError):  # of Decimal, a division by zero is both
        return told
