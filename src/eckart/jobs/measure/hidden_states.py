"""Texts through a pretrained model without its head: batches of token ids, and the hidden states of every layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eckart.errors import InputError
from eckart.tasks.pretrained import Checkpoint, load_pretrained, refuse_incomplete

POOL = 16
"""Batches whose texts are sorted by length, so that little of a batch is padding."""

Batch = tuple[list[int], Int[Tensor, "b n"], Bool[Tensor, "b n"]]


def load_backbone(checkpoint: Checkpoint) -> Any:
    """A model without its head, in float32 and eval mode on the CPU; of an encoder-decoder, the encoder.

    Raises:
        InputError: it cannot be loaded, does not read token ids, or lacks a tensor that the hidden states need.
    """
    model, missing = load_pretrained("AutoModel", checkpoint)
    if model.main_input_name != "input_ids":
        raise InputError(f"--model {checkpoint.name} reads {model.main_input_name}: give a model of text")
    two = hasattr(model, "encoder") and hasattr(model, "decoder")
    backbone = model.get_encoder() if two else model
    used = {id(t) for name, t in backbone.state_dict(keep_vars=True).items() if "pooler" not in name}
    tensors = model.state_dict(keep_vars=True)
    refuse_incomplete(checkpoint, [name for name in missing if id(tensors.get(name)) in used])
    backbone.config.use_cache = False
    return backbone.eval()


def text_batches(
    texts: Sequence[Any], encode: Callable[[list[Any]], list[list[int]]], batch_size: int, pad: int
) -> Iterator[Batch]:
    """Batches of texts of like length, padded to the right.

    Args:
        texts: any number; those of `POOL` batches are encoded at a time.
        encode: makes the token ids of each of some texts.
        batch_size: texts of a batch.
        pad: the token that fills a row up, whatever it means: the mask hides it.

    Yields:
        The numbers of the texts, their token ids, and which of these are tokens. A text without tokens is one ``pad``.
    """
    for start in range(0, len(texts), POOL * batch_size):
        rows = [ids or [pad] for ids in encode(list(texts[start : start + POOL * batch_size]))]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            lengths = torch.tensor([len(rows[i]) for i in chosen])
            width = int(lengths.max())
            ids = torch.tensor([rows[i] + [pad] * (width - len(rows[i])) for i in chosen])
            yield [start + i for i in chosen], ids, torch.arange(width) < lengths[:, None]


def hidden_states(
    model: nn.Module, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]
) -> list[Float[Tensor, "b n d"]]:
    """The embeddings, then what each block gives; the last one is after the final norm, as a head would get it.

    Args:
        model: any model of transformers that reads token ids, with or without a head.
        ids: token ids.
        mask: True for tokens, False for padding.

    Raises:
        InputError: a model that gives no hidden states, or that cannot leave padding out where there is some.
    """
    parameters = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    if (
        "attention_mask" in parameters or "input_ids" not in parameters
    ):  # without either it hands everything on
        options["attention_mask"] = mask.long()
    elif not mask.all():
        raise InputError(
            f"{type(model).__name__} takes no attention mask, so padding would change its hidden states: "
            "give batches without padding (--batch-size 1, or --window)"
        )
    outputs = model(input_ids=ids, output_hidden_states=True, **options)
    states = getattr(outputs, "hidden_states", None)
    if not states:
        raise InputError(f"{type(model).__name__} gives no hidden_states: give a model of transformers")
    last = getattr(outputs, "last_hidden_state", None)
    return [*states[:-1], states[-1] if last is None else last]
