"""Layers put in the place of others: in which models they may be, where they go, and what a checkpoint has of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eckart.errors import InputError, first_line

WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
"""Classes around a model → where it is in them."""


def refuse_wrapped(model: nn.Module, verb: str) -> None:
    """Refuse what is no module, or one around a model.

    Args:
        model: whose layers are to be replaced.
        verb: what is done to it.

    Raises:
        InputError: naming where the model is.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model is a {type(model).__name__}: give the module itself, loaded with its weights"
        )
    inside = WRAPPERS.get(type(model).__name__)
    if inside is not None:
        raise InputError(
            f"the model is wrapped in {type(model).__name__}: {verb} model.{inside}, then wrap it again"
        )


def refuse_adapter(name: str, module: nn.Module, verb: str) -> None:
    """Refuse a layer that has an adapter.

    Raises:
        InputError: naming it.
    """
    if hasattr(module, "base_layer"):
        raise InputError(
            f"layer {name} has an adapter: merge it first (merge_and_unload), then {verb} the model"
        )


def kept_random_state(model: nn.Module) -> AbstractContextManager[None]:
    """PyTorch's layers draw a start when they are made, which is of no use where their numbers are set."""
    device = next(model.parameters()).device
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def install(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of this name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def rebuild(
    model: nn.Module, specs: Mapping[str, Any], build: Callable[..., nn.Module], files: Iterable[Any]
) -> None:
    """Put the layers that specs describe into a model of transformers, to load their numbers.

    Args:
        model: a skeleton.
        specs: name → what ``build`` takes, beside the device and the dtype of the layer that is there.
        build: makes a layer of a spec.
        files: of the checkpoint, held against the layers.

    Raises:
        InputError: a layer that the model has not, a damaged spec, or tensors of other shapes.
    """
    layers: dict[str, nn.Module] = {}
    for name, place in places(model, specs).items():
        dense: Any = model.get_submodule(place)
        layers[name] = build(specs[name], dense.weight.device, dense.weight.dtype)
        install(model, place, layers[name])
    check_stored(files, layers, model)


def places(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Names of layers in a checkpoint → in a model that may be the backbone of the one that was saved, or hold it.

    Raises:
        InputError: a layer that the model has not.
    """
    there = {name for name, _ in model.named_modules()}
    prefix = getattr(model, "base_model_prefix", "") + "."
    found = {}
    for name in names:
        options = (name, name.removeprefix(prefix), prefix + name)
        place = next((option for option in options if option in there), None)
        if place is None:
            raise InputError(
                f"the checkpoint has changed layer {name}, which {type(model).__name__} has not: load it with the "
                "class that its config.json names under architectures"
            )
        found[name] = place
    return found


def check_stored(files: Iterable[Any], layers: Mapping[str, nn.Module], model: Any) -> None:
    """Hold what safetensors files have of some layers against the layers, under the names in the files and under those
    that transformers gives them on loading. Files with nothing of any of them are another model's affair.

    Args:
        files: of a checkpoint.
        layers: by their names in it, on any device.
        model: of transformers, which knows the renamings.

    Raises:
        InputError: a tensor of another shape, or none.
    """
    from safetensors import SafetensorError, safe_open
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [e for e in get_model_conversion_mapping(model) or [] if isinstance(e, WeightRenaming)]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        if Path(file).suffix != ".safetensors":
            continue
        try:
            with safe_open(file, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - the file is no mapping
                    shape = tuple(tensors.get_slice(key).get_shape())
                    shapes[key] = shapes[rename_source_key(key, renamings, [])[0]] = shape
        except SafetensorError as error:
            raise InputError(f"{file} is damaged or cut short ({first_line(error)}): copy it again") from None
    if not any(key.startswith(f"{name}.") for name in layers for key in shapes):
        return
    for name, layer in layers.items():
        for key, value in layer.state_dict().items():
            full, wanted = f"{name}.{key}", tuple(value.shape)
            found = shapes.get(full)
            if found is None:
                raise InputError(
                    f"{full} is missing from the checkpoint: it is damaged, or its config.json is another's"
                )
            if found != wanted:
                raise InputError(
                    f"{full} has shape {found}, its config.json says {wanted}: they are not of one model"
                )
