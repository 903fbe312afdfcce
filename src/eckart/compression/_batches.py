"""Batches of calibration data: looked at before they are used, and given to a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eckart.errors import InputError, first_line

Batch = Any


def checked_batches(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches on the model's device, each looked at first.

    Raises:
        InputError: no batch, something that is none, tokens outside the vocabulary, NaN.
    """
    if isinstance(batches, Mapping | Tensor | str | bytes) or not isinstance(batches, Iterable):
        raise InputError(f"calibration is a {type(batches).__name__}: give a list or loader of batches")
    device = next(model.parameters()).device
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    number = -1
    for number, batch in enumerate(batches):
        items = (
            batch
            if isinstance(batch, Mapping)
            else dict(enumerate(batch if isinstance(batch, tuple | list) else [batch]))
        )
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in items.items()}
        if not any(isinstance(value, Tensor) for value in moved.values()):
            raise InputError(
                f"calibration batch {number} ({type(batch).__name__}) holds no tensor: give mappings of model inputs, "
                "or tensors; texts are tokenized first"
            )
        for name, value in moved.items():
            if not isinstance(value, Tensor):
                continue
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise InputError(f"calibration batch {number} holds NaN or Inf in {name!r}: clean the data")
            ids = name in ("input_ids", 0) and not value.is_floating_point()
            if (
                ids
                and vocabulary is not None
                and value.numel()
                and not 0 <= int(value.min()) <= int(value.max()) < vocabulary
            ):
                raise InputError(
                    f"calibration batch {number} holds tokens {int(value.min())} … {int(value.max())}, the model has "
                    f"{vocabulary}: use the tokenizer of this model"
                )
        yield moved if isinstance(batch, Mapping) else tuple(moved.values())
    if number < 0:
        raise InputError("calibration has no batches: give at least one, a few hundred sequences are usual")


def call(model: nn.Module, batch: Batch, number: int) -> Any:
    """What a model gives for a batch; labels are left out where no decoder's inputs are made of them."""
    config = getattr(model, "config", None)
    try:
        if not isinstance(batch, Mapping):
            return model(batch[0] if isinstance(batch, tuple | list) else batch)
        labels = () if getattr(config, "is_encoder_decoder", False) else ("labels", "label")
        named = {name: value for name, value in batch.items() if name not in labels}
        cached = "use_cache" in (getattr(config, "__dict__", {}) or {})
        return model(**named, **({"use_cache": False} if cached else {}))
    except (InputError, torch.OutOfMemoryError):
        raise
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
        raise InputError(
            f"calibration batch {number} does not run through {type(model).__name__} ({first_line(error)}): give what "
            "its forward takes"
        ) from error


def token_mask(batch: Batch) -> Tensor | None:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
