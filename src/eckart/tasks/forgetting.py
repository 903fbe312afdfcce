"""Forgetting: what a language model loses of a general text while it learns a task.

With B the bits of a token of the text, −mean log₂ p(token | tokens before it), forgetting is B after training less B
before; below 0 the model has gained.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from eckart.data.columns import pick_columns
from eckart.data.splits import Split
from eckart.data.tables import read_table
from eckart.errors import InputError
from eckart.tasks.encode import token_blocks
from eckart.tasks.instruments import device
from eckart.tasks.kinds.chat import answer_bits

if TYPE_CHECKING:
    from eckart.tasks.task import Task

TOKENS = 2**14
"""Of a longer text so many are scored, in blocks that lie evenly over it."""
AT_ONCE = 4096
"""Tokens that are scored together."""


@dataclass(frozen=True)
class General:
    """A general text, in blocks of tokens.

    Attributes:
        name: of its file.
        blocks: its tokens, or some of them.
        sha256: of these.
    """

    name: str
    blocks: Int[Tensor, "n length"]
    sha256: str


def read_general(source: str | Path, tokenizer: Any, length: int, notes: list[str]) -> General:
    """The text of a file as blocks.

    Args:
        source: a file as `eckart.data.tables.read_table` takes them, of plain text or with a column of texts.
        tokenizer: of the model.
        length: tokens of a block.
        notes: what is found is added.

    Raises:
        InputError: no such file, one that holds no text, or less than one block.
    """
    path = Path(source).expanduser()
    try:
        texts = pick_columns(read_table(path), None, None, False)[0]
    except InputError as error:
        raise InputError(
            f"--also {path}: {str(error).removeprefix(f'--data {path}').lstrip(',: ')}"
        ) from None
    blocks = token_blocks(Split(texts), tokenizer, length, f"--also {path}: the text")
    most = max(1, TOKENS // length)
    chosen = blocks[np.unique(np.linspace(0, len(blocks) - 1, most).round().astype(int))]
    of = "" if len(chosen) == len(blocks) else f" of {len(blocks):,}, evenly over it"
    notes.append(f"forgetting is measured on {path.name}: {len(chosen):,} blocks of {length} tokens{of}")
    digest = hashlib.sha256(chosen.numpy().tobytes()).hexdigest()
    return General(path.name, chosen, digest)


@torch.inference_mode()
def bits_of(model: nn.Module, general: General) -> float:
    """Bits of a token of a general text by a model."""
    training, where = model.training, next(model.parameters()).device
    model.eval()
    told = []
    for batch in general.blocks.split(max(1, AT_ONCE // general.blocks.shape[1])):
        ids = batch.to(where)
        told.append([numbers.sum() for numbers in answer_bits(model(input_ids=ids).logits, ids)])
    model.train(training)
    bits, tokens = np.sum(told, axis=0)
    return float(bits / tokens)


def bits_before(task: Task) -> float | None:
    """Bits of a token by the model as it is given; None where no general text is."""
    return None if task.general is None else bits_of(task.fresh_model(0).to(device()), task.general)


def forgotten(task: Task, before: float | None, model: nn.Module) -> dict[str, Any]:
    """What metrics.json says of forgetting: nothing where no general text is given.

    Args:
        task: with the text.
        before: as `bits_before`.
        model: after training.
    """
    if task.general is None or before is None:
        return {}
    after = bits_of(model, task.general)
    return {
        "forgetting": {
            "text": task.general.name,
            "bits_per_token": after - before,
            "before": before,
            "after": after,
        }
    }
