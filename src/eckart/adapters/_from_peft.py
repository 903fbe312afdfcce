"""Checkpoints of PEFT's own LoRA, RandLoRA and MiSS, read as adapters of this library."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from eckart.adapter_files import read_adapter_config
from eckart.adapters._checkpoint import MODEL_PREFIX, WEIGHTS_NAME, read_outline
from eckart.adapters._registry import ADAPTERS
from eckart.errors import InputError


def from_peft(
    model: nn.Module, path: str | Path, adapter_name: str = "default", *, is_trainable: bool = False
) -> PeftModel:
    """Load a checkpoint that PEFT's own LoRA, RandLoRA or MiSS (also old Bone) wrote, as an adapter of this library.

    The outputs are those of PEFT. Scalings that differ between the layers of a LoRA are folded into its factors, and a
    rank above what a layer can hold is lowered without loss. RandLoRA's bases are drawn again from its key, and stored
    only where that gives others.

    Args:
        model: the base model, or a `PeftModel` to which the adapter is added.
        path: directory or hub name of the checkpoint.
        adapter_name: its name in the model.
        is_trainable: leave the adapter trainable, to train it further.

    Raises:
        InputError: no such checkpoint, one of another type, one that uses what has no counterpart here (named), or
            one that does not fit the model, which is left as it was.
    """
    directory, saved = read_adapter_config(path)
    readers = {kind: config for config in ADAPTERS.values() for kind in config.peft_types}
    if saved["peft_type"] not in readers:
        raise InputError(
            f"adapter {path} is of type {saved['peft_type']}: from_peft reads {', '.join(readers)}; load it with PEFT"
        )
    read_outline(directory)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    config, state = readers[saved["peft_type"]].read_peft(saved, load_file(directory / WEIGHTS_NAME), base)
    _check_modules(path, state, base)
    config.inference_mode = not is_trainable
    config.checkpoint = state
    if isinstance(model, PeftModel):
        model.add_adapter(adapter_name, config)
    else:
        model = get_peft_model(model, config, adapter_name)
    set_peft_model_state_dict(model, state, adapter_name)
    return model.train(is_trainable)


State = dict[str, Tensor]
_KEPT = (
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "task_type",
    "base_model_name_or_path",
    "revision",
)
_WITHOUT_EFFECT = {"peft_type", "peft_version", "auto_mapping", "inference_mode", "fan_in_fan_out"}


def peft_options(saved: dict[str, Any], peft_config: type[PeftConfig], read: Iterable[str]) -> dict[str, Any]:
    """The fields that all methods share.

    Raises:
        InputError: a field that is neither shared, read by the caller nor at PEFT's default.
    """
    defaults = {
        field.name: field.default_factory() if callable(field.default_factory) else field.default
        for field in fields(peft_config)
    }
    done = {*_KEPT, *_WITHOUT_EFFECT, *read}
    foreign = {
        key: value
        for key, value in saved.items()
        if key not in done and value not in (None, False, "none", {}, []) and value != defaults.get(key)
    }
    if foreign:
        told = ", ".join(f"{key}={value!r}" for key, value in sorted(foreign.items()))
        raise InputError(
            f"a {saved['peft_type']} checkpoint with {told} has no counterpart here: load it with PEFT"
        )
    return {key: saved[key] for key in _KEPT if saved.get(key) is not None}


def our_key(layer: str, name: str) -> str:
    """The key of an adapter's tensor in our checkpoints."""
    return f"{layer}.eckart_adapters.{name}"


def _check_modules(path: str | Path, state: State, base: nn.Module) -> None:
    """Refuse trained modules that the model has not, or with other shapes, and drop base weights it has already.

    PEFT adds the weight of an adapted embedding to its checkpoints; only an unchanged one can be left out here.
    """
    there = {
        re.sub(r"\.(base_layer|original_module)\.", ".", key): value
        for key, value in base.state_dict().items()
        if ".eckart_adapters." not in key and ".modules_to_save." not in key
    }
    for key in [key for key in state if ".eckart_adapters." not in key]:
        name = key.removeprefix(MODEL_PREFIX).replace(".base_layer.", ".")
        found, shape = there.get(name), tuple(state[key].shape)
        if found is None or tuple(found.shape) != shape:
            told = "no such module" if found is None else f"shape {tuple(found.shape)} there"
            raise InputError(f"adapter {path} holds {name} of shape {shape}, but the model has {told}")
        if ".base_layer." in key:
            if not torch.equal(found.cpu().to(state[key].dtype), state[key]):
                raise InputError(f"adapter {path} changes the base weight {name}: load it with PEFT")
            del state[key]
