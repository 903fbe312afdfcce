"""A checkpoint held against the model it is to be loaded on: which of its tensors go where, and which go nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from eckart.adapters._base import Adapter, LowRankAdapter
from eckart.adapters._census import aliases
from eckart.adapters._checkpoint import INSIDE, MODEL_PREFIX, compare_tensors
from eckart.adapters._config import AdapterConfig
from eckart.adapters._method import MethodConfig
from eckart.errors import InputError

State = dict[str, Tensor]
_WRAPPED = re.compile(r"\.(token_adapter\.base_layer|original_module|base_layer)\.")
"""What PEFT puts into the name of an embedding's own weight when it saves the embedding with all around it."""


def rehearse(config: AdapterConfig, model: nn.Module, adapters: Mapping[str, Adapter]) -> None:
    """Compare the checkpoint of a config with the model and the adapters of its layers, and load what it holds into
    them, all before the model is touched: PEFT loads only afterwards.

    Args:
        config: with its checkpoint.
        model: the model, without these adapters.
        adapters: the new adapters by the name of their layer.

    Raises:
        InputError: other tensors than the adapters and the modules trained in full have, or numbers they refuse.
    """
    checkpoint = rename_keys(model, cast(State, config.checkpoint))
    stems = {name: f"{MODEL_PREFIX}{name}{INSIDE}" for name in adapters}
    for name, adapter in adapters.items():
        if isinstance(adapter, LowRankAdapter) and f"{stems[name]}active" in checkpoint:
            adapter.set_active(torch.ones(adapter.factor_rank, dtype=torch.bool))
    states = {name: adapter.state_dict() for name, adapter in adapters.items()}
    expected = {stems[name] + key: value for name, state in states.items() for key, value in state.items()}
    _check_all(checkpoint, expected, config, model)
    for name, adapter in adapters.items():
        found = {key: checkpoint[stems[name] + key] for key in states[name]}
        held = {key: value for key, value in found.items() if not value.is_meta}
        adapter.load_state_dict(held, strict=False)


def rehearse_prompt(config: MethodConfig, model: nn.Module, layer: str, prompt: nn.Module) -> None:
    """Compare the checkpoint of a config with the model and its prompt, before the model is touched.

    Args:
        config: with its checkpoint.
        model: the model, without this prompt.
        layer: what the layer of the prompt is called in it.
        prompt: the new prompt.

    Raises:
        InputError: other tensors than the prompt and the modules trained in full have.
    """
    stem = f"{MODEL_PREFIX}{layer}{INSIDE}"
    expected = {stem + key: value for key, value in prompt.state_dict().items()}
    _check_all(rename_keys(model, cast(State, config.checkpoint)), expected, config, model)


def _check_all(
    checkpoint: State, expected: Mapping[str, Tensor], config: MethodConfig, model: nn.Module
) -> None:
    """Refuse a checkpoint that holds anything but what is expected and the modules trained in full."""
    compare_tensors(checkpoint, expected)
    others = {key: value for key, value in checkpoint.items() if key not in expected}
    trained = dict(_trained(config, model))
    compare_tensors(others, trained)
    _check_rest({key: value for key, value in others.items() if key not in trained}, others, model)


def _trained(config: MethodConfig, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the modules that are trained in full, under their names in a checkpoint."""
    wanted, tokens = config.modules_to_save or [], getattr(config, "trainable_token_indices", None) or {}
    if isinstance(tokens, list):
        embedding = cast(PreTrainedModel, model).get_input_embeddings()
        tokens = {name: tokens for name in aliases(model, embedding)[:1]}
    for name, module in model.named_modules():
        if any(name == own or name.endswith(f".{own}") for own in wanted):
            base = module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module
            for key, value in base.state_dict().items():
                if INSIDE not in f".{key}":
                    yield f"{MODEL_PREFIX}{name}.{key.replace('base_layer.', '')}", value
        for own, indices in tokens.items():
            if name == own or name.endswith(f".{own}"):
                base = module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module
                rows = cast(Tensor, base.weight)[:1].expand(len(indices), -1)
                yield f"{MODEL_PREFIX}{name}.token_adapter.trainable_tokens_delta", rows


def _check_rest(rest: Mapping[str, Tensor], others: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse what belongs neither to an adapter nor to a module trained in full. PEFT adds the embeddings of a model
    whose vocabulary grew, or that are adapted: their first rows are the model's own; and it saves some tensors twice.

    Args:
        rest: the tensors in question.
        others: all that are not an adapter's.
        model: the model.

    Raises:
        InputError: another tensor, or an embedding with other rows.
    """
    embeddings = {
        f"{MODEL_PREFIX}{name}.{key}": value
        for name, base in embeddings_of(model)
        for key, value in base.state_dict().items()
    }
    for key, found in rest.items():
        if _is_copy(key, found, others):
            continue
        own = embeddings.get(unwrapped(key))
        if own is None:
            kind = "fits no adapted layer" if INSIDE in key else "belongs to no adapter and no module to save"
            raise InputError(
                f"checkpoint tensor {key} {kind} of this model ({len(rest)} such tensors): it was saved for another "
                "model or method, or was altered"
            )
        compare_tensors(rest, {key: own})
        same = (
            (found == own.detach().to("cpu", found.dtype)).flatten(1).all(1)
            if found.dim() > 1
            else found == found
        )
        grown = int(same.int().cumprod(0).sum())
        if 2 * grown < len(same):
            raise InputError(
                f"checkpoint tensor {key} changes the base model from row {grown} on, not only rows that were added "
                "to the vocabulary: load it on its own base model"
            )


def _is_copy(key: str, found: Tensor, others: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is there twice: a trained embedding under its own name and its wrapper's, or tied ones."""
    if ".modules_to_save." in key:
        twins = [key.replace(".modules_to_save.", ".")]
    elif key.endswith(end := ".token_adapter.trainable_tokens_delta"):
        twins = [other for other in others if other.endswith(end) and other != key]
    else:
        return False
    return any(name in others and torch.equal(others[name], found) for name in twins)


def unwrapped(key: str) -> str:
    """The key of an embedding's tensor without what PEFT wraps around the embedding."""
    return _WRAPPED.sub(".", key)


def embeddings_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The input and output embeddings of a transformers model, below adapters, under each of their names."""
    if isinstance(model, PreTrainedModel):
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            if module is not None:
                base = cast(Any, module).get_base_layer() if hasattr(module, "get_base_layer") else module
                for name in aliases(model, base):
                    yield unwrapped(f"{name}.").removesuffix("."), base


def rename_keys(model: nn.Module, state: Mapping[str, Tensor]) -> State:
    """A checkpoint's tensors under the names that the model's modules have now, by the renamings that transformers and
    PEFT know for it."""
    return {
        MODEL_PREFIX + rename(model, key.removeprefix(MODEL_PREFIX))
        if key.startswith(MODEL_PREFIX)
        else key: tensor
        for key, tensor in state.items()
    }


def rename_config(model: nn.Module, config: AdapterConfig) -> None:
    """Give the names of modules in a config that was read from a checkpoint the names that they have now."""

    def now(name: str) -> str:
        return rename(model, f"{name}.weight").removesuffix(".weight")

    if isinstance(config.target_modules, list | set):
        config.target_modules = {now(name) for name in config.target_modules}
    if config.target_parameters:
        config.target_parameters = [rename(model, name) for name in config.target_parameters]
    for field in ("rank_pattern", "base_check"):
        if entries := getattr(config, field):
            setattr(config, field, {now(name): value for name, value in entries.items()})


def rename(model: nn.Module, key: str) -> str:
    """A key of the model's weights as it is called now; as given where the model has its module or no renaming
    leads to one."""
    module = re.split(r"\.eckart_adapters\.|\.(?=[^.]+$)", key)[0]
    if _has(model, module):
        return key
    for pattern, replacement in getattr(model, "_checkpoint_conversion_mapping", {}).items():
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    if isinstance(model, PreTrainedModel):
        mapping: list[Any] = get_model_conversion_mapping(model) or []
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        renamed = rename_source_key(key, renamings, [])[0]
        if _has(model, re.split(r"\.eckart_adapters\.|\.(?=[^.]+$)", renamed)[0]):
            return renamed
    return key


def _has(model: nn.Module, name: str) -> bool:
    """Whether a model has a module of this name, or a parameter, or a stack with a matrix of this number."""
    stack = re.sub(r"\.\d+$", "", name)
    places = ((model.get_submodule, name), (model.get_parameter, name), (model.get_parameter, stack))
    for find, place in places:
        try:
            find(place)
        except AttributeError:
            continue
        return True
    return False
