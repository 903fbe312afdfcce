"""Checkpoints of PEFT's own LoRA, RandLoRA and MiSS, read as adapters of this library."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import MissConfig as PeftMissConfig
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft import RandLoraConfig as PeftRandLoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor, nn

from eckart.adapters._base import AdapterConfig
from eckart.adapters._budget import target_shapes
from eckart.adapters._checkpoint import MODEL_PREFIX, WEIGHTS_NAME, read_outline
from eckart.adapters._merging import read_adapter_config
from eckart.adapters._registry import get_config
from eckart.adapters.randlora import RandomBases
from eckart.errors import InputError


def from_peft(
    model: nn.Module, path: str | Path, adapter_name: str = "default", *, is_trainable: bool = False
) -> PeftModel:
    """Load a checkpoint that PEFT's own LoRA, RandLoRA or MiSS (also old Bone) wrote, as an adapter of this library.

    The outputs are those of PEFT. Ranks and scalings that differ between the layers of a LoRA are padded and folded
    into its factors. RandLoRA's bases are drawn again from its key, and stored only where that gives others.

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
    if saved["peft_type"] not in _READERS:
        raise InputError(
            f"adapter {path} is of type {saved['peft_type']}: from_peft reads {', '.join(_READERS)}; load it with PEFT"
        )
    read_outline(directory)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    config, state = _READERS[saved["peft_type"]](saved, load_file(directory / WEIGHTS_NAME), base)
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


def _options(saved: dict[str, Any], peft_config: type[PeftConfig], read: Iterable[str]) -> dict[str, Any]:
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


def _ours(layer: str, name: str) -> str:
    return f"{layer}.eckart_adapters.{name}"


_UNCHANGED_BASE = (True, False, "gaussian", "orthogonal", "eva")
"""Ways in which PEFT starts a LoRA without changing the base weight; the others need the weight they left behind."""


def _read_lora(saved: dict[str, Any], tensors: State, base: nn.Module) -> tuple[AdapterConfig, State]:
    read = ["r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"]
    if saved.get("init_lora_weights", True) in _UNCHANGED_BASE:
        read.append("init_lora_weights")
    options = _options(saved, PeftLoraConfig, read)
    alpha, alphas = saved["lora_alpha"], saved.get("alpha_pattern") or {}
    factors: dict[str, State] = {}
    state: State = {}
    for key, value in tensors.items():
        match = re.fullmatch(r"(.*)\.lora_(?:embedding_)?([AB])(?:\.weight)?", key)
        if match is None:
            state[key] = value
        else:
            factors.setdefault(match[1], {})[match[2]] = value.flatten(1)
    r = max((pair["A"].shape[0] for pair in factors.values() if "A" in pair), default=saved["r"])
    config = get_config("lora")(
        r=r,
        lora_alpha=alpha,
        use_rslora=bool(saved.get("use_rslora")),
        dropout=saved.get("lora_dropout") or 0.0,
        **options,
    )
    power = 0.5 if config.use_rslora else 1.0
    for layer, pair in factors.items():
        for letter, value in pair.items():
            rank = value.shape[0 if letter == "A" else 1]
            if letter == "B":
                own = alphas.get(get_pattern_key(alphas.keys(), layer.removeprefix(MODEL_PREFIX)), alpha)
                factor = (own / rank**power) / (alpha / r**power)
                value = value if factor == 1 else value * factor
            padding = (0, 0, 0, r - rank) if letter == "A" else (0, r - rank)
            state[_ours(layer, f"lora_{letter}")] = nn.functional.pad(value, padding)
    return config, state


def _read_randlora(saved: dict[str, Any], tensors: State, base: nn.Module) -> tuple[AdapterConfig, State]:
    read = ("r", "randlora_alpha", "randlora_dropout", "projection_prng_key", "save_projection")
    options = _options(saved, PeftRandLoraConfig, (*read, "sparse", "very_sparse", "init_weights"))
    config = get_config("randlora")(
        r=saved["r"],
        randlora_alpha=saved["randlora_alpha"],
        basis="very-sparse" if saved.get("very_sparse") else "sparse" if saved.get("sparse") else "uniform",
        seed=saved["projection_prng_key"],
        dropout=saved.get("randlora_dropout") or 0.0,
        **options,
    )
    state = {}
    bases: State = {}
    for key, value in tensors.items():
        layer, _, name = key.rpartition(".")
        if name in ("randlora_A", "randlora_B"):
            bases[name] = value
        else:
            state[_ours(layer, name) if name.startswith("randlora_") else key] = value
    shapes = target_shapes(base, config)
    drawn = RandomBases(config, *config.basis_shape(shapes), torch.float32)
    names = ("randlora_A", "randlora_B")
    kept = {name: bases.get(name, getattr(drawn, name)).float() for name in names}
    config.save_basis = any(not torch.equal(kept[name], getattr(drawn, name)) for name in names)
    ends = [part for basis in kept.values() for part in (basis.flatten()[:2], basis.flatten()[-2:])]
    shared = {"basis_check": torch.cat(ends), **(kept if config.save_basis else {})}
    state.update(
        {_ours(f"{MODEL_PREFIX}{shapes[0].name}", f"bases.{name}"): value for name, value in shared.items()}
    )
    return config, state


def _read_miss(saved: dict[str, Any], tensors: State, base: nn.Module) -> tuple[AdapterConfig, State]:
    old = "bone" if saved["peft_type"] == "BONE" else "miss"
    options = _options(saved, PeftMissConfig, ("r", f"{old}_dropout", "mini_r", "init_weights"))
    start = saved.get("init_weights", True)
    config = get_config("bone")(
        r=saved["r"],
        variant=start if isinstance(start, str) else "miss",
        dropout=saved.get(f"{old}_dropout") or 0.0,
        **({"mini_r": saved["mini_r"]} if start == "mini" else {}),
        **options,
    )
    state = {}
    for key, value in tensors.items():
        layer, _, name = key.rpartition(".")
        state[_ours(layer, "miss_block") if name == f"{old}_block" else key] = value
    return config, state


_READERS = {"LORA": _read_lora, "RANDLORA": _read_randlora, "MISS": _read_miss, "BONE": _read_miss}


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
