"""A base model with an adapter on it, from their files."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from eckart.adapter_files import CONFIG_NAME, base_model, read_adapter_config
from eckart.adapters._census import PREFIX
from eckart.adapters._checkpoint import MODEL_PREFIX, read_outline
from eckart.adapters._from_peft import from_peft
from eckart.adapters._rehearsal import embeddings_of, unwrapped
from eckart.errors import InputError, first_line

_AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
_HEADS = ("classifier.weight", "score.weight", "classifier.out_proj.weight")


def load_adapted(model: str | Path | None, adapter: str | Path, *, ours: bool = False) -> PeftModel:
    """A base model with an adapter on it, in the model class that the adapter was trained in.

    The size of a trained head follows from a ``config.json`` beside the adapter, or from the head's own shape.

    Args:
        model: directory or hub name of the base model; what the adapter's configuration names when None.
        adapter: directory or hub name of the adapter.
        ours: as an adapter of this library also where the checkpoint is PEFT's own LoRA, RandLoRA or MiSS.

    Raises:
        InputError: either is missing, damaged or does not fit the other.
    """
    directory, config = read_adapter_config(adapter)
    model = base_model(model, adapter, config)
    tensors = read_outline(directory)
    labels = next((len(t) for head in _HEADS for key, t in tensors.items() if key.endswith(f".{head}")), None)
    options: dict[str, Any] = {}
    if labels is not None:
        options = {"num_labels": labels, "ignore_mismatched_sizes": True}
    if (directory / "config.json").is_file():
        options = {"config": AutoConfig.from_pretrained(directory), "ignore_mismatched_sizes": True}
    try:
        if (
            "config" in options
        ):  # the vocabulary is the base's until `_resize`, or its rows would be drawn anew
            own = AutoConfig.from_pretrained(model).get_text_config()
            if hasattr(own, "vocab_size"):
                options["config"].get_text_config().vocab_size = own.vocab_size
        base, info = _base_class(adapter, config).from_pretrained(
            model, dtype="auto", output_loading_info=True, **options
        )
    except (OSError, ValueError) as error:
        raise InputError(f"base model {model} cannot be loaded: {first_line(error)}") from None
    brought = {key.removeprefix(MODEL_PREFIX) for key in tensors}
    absent = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])} - brought
    if absent:
        raise InputError(
            f"base model {model} lacks {min(absent)} ({len(absent)} tensors), which {type(base).__name__} needs and "
            f"adapter {adapter} does not bring: give the base model it was trained on"
        )
    _resize(base, tensors)
    try:
        if ours and not config["peft_type"].startswith(PREFIX.upper()):
            return from_peft(base, directory)
        return PeftModel.from_pretrained(base, str(directory))
    except InputError:
        raise
    except (ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"adapter {adapter} does not fit {model}: {first_line(error)}") from None


def _resize(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Give a model the vocabulary of a checkpoint that brings its embeddings, with the rows that were added."""
    brought = {unwrapped(key): tensor for key, tensor in tensors.items() if ".modules_to_save." not in key}
    for name, module in list(embeddings_of(model)):
        rows = brought.get(f"{MODEL_PREFIX}{name}.weight")
        if rows is None or rows.dim() != 2 or len(rows) == (known := len(cast(Tensor, module.weight))):
            continue
        model.resize_token_embeddings(len(rows), mean_resizing=False)
        with torch.no_grad():
            resized = cast(Tensor, model.get_submodule(name).weight)
            if resized.shape == rows.shape:  # PEFT says what does not fit
                resized[known:] = rows[known:].to(resized)


_SLICED = "eckart.compression._sliced"
"""Where the classes of MoDeGPT's models are."""


def _base_class(adapter: str | Path, config: dict[str, Any]) -> Any:
    import transformers

    if (task := config.get("task_type")) in _AUTO_CLASSES:
        return getattr(transformers, _AUTO_CLASSES[task])
    mapping = config.get("auto_mapping") or {}
    library, name = mapping.get("parent_library", ""), mapping.get("base_model_class", "")
    if library.partition(".")[0] == "transformers" or library == _SLICED:
        return getattr(importlib.import_module(library), name)
    raise InputError(
        f"adapter {adapter} does not say which transformers class it was trained in: set task_type in its {CONFIG_NAME}"
    )
