"""A task's model with LoRA, as PEFT has it: what clients train, what the server scores and what is saved in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from eckart.errors import InputError
from eckart.federated.state import KEY_A, KEY_B, ServerState

if TYPE_CHECKING:
    from eckart.tasks.task import Task


def linear_layers(task: Task) -> list[str]:
    """Names of every linear layer outside the task's head."""
    heads = tuple(f"{head}." for head in task.head_modules)
    return [
        name
        for name, module in task.fresh_model(0).named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not f"{name}.".startswith(heads) and name != "lm_head"
    ]


def with_lora(
    task: Task,
    target_modules: str | Sequence[str],
    r: int,
    scaling: float,
    seed: int,
    ranks: Mapping[str, int] | None = None,
    **options: Any,
) -> PeftModel:
    """The task's model with LoRA of rank r, its head trainable.

    Args:
        task: whose model it is.
        target_modules: as in PEFT.
        r: rank.
        scaling: what B A is multiplied by.
        seed: of the head.
        ranks: layer name -> its own rank, where it has one.
        options: further ones of PEFT's LoraConfig.

    Raises:
        InputError: target modules that match nothing or are no linear layers.
    """
    ranks = dict(ranks or {})
    config = LoraConfig(
        r=r,
        lora_alpha=scaling * r,  # type: ignore[arg-type]
        rank_pattern=ranks,
        alpha_pattern={name: scaling * rank for name, rank in ranks.items()},
        target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
        modules_to_save=list(task.head_modules) or None,
        **options,
    )
    try:
        model: PeftModel = get_peft_model(task.fresh_model(seed), config)
    except ValueError as error:
        raise InputError(f"target_modules is {target_modules!r}: {str(error).splitlines()[0]}") from None
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and not isinstance(module, Linear):
            raise InputError(f"target_modules match {name}, a {type(module).__name__}: name linear layers")
    return model


def lora_layers(model: PeftModel) -> dict[str, Linear]:
    """Layer name -> its LoRA layer."""
    root = model.get_base_model()
    return {name: module for name, module in root.named_modules() if isinstance(module, Linear)}


def shapes_and_head(model: PeftModel) -> tuple[dict[str, tuple[int, int]], dict[str, Tensor]]:
    """(out, in) of every adapted weight, and the head by PEFT's keys."""
    shapes = {}
    for name, layer in lora_layers(model).items():
        a, b = (cast(nn.Linear, part["default"]).weight for part in (layer.lora_A, layer.lora_B))
        shapes[name] = (b.shape[0], a.shape[1])
    return shapes, {key: value.detach().float().cpu().clone() for key, value in head(model).items()}


def head(model: PeftModel) -> dict[str, Tensor]:
    """The trained copies of the head's tensors, by the keys that PEFT saves them under."""
    mark = ".modules_to_save.default."
    state = model.state_dict(keep_vars=True)
    return {key.replace(mark, "."): value for key, value in state.items() if mark in key}


@torch.no_grad()
def add_to_base(model: PeftModel, updates: Mapping[str, Tensor]) -> None:
    """Add to the frozen weights under the adapters.

    Args:
        model: adapted.
        updates: layer name -> (out, in).
    """
    root = model.get_base_model()
    for name, update in updates.items():
        layer = cast(BaseTunerLayer, root.get_submodule(name)).get_base_layer()
        weight = cast(nn.Linear, layer).weight
        weight += (update.mT if isinstance(layer, Conv1D) else update).to(weight)


def load_factors(model: PeftModel, tensors: Mapping[str, Tensor]) -> None:
    """Load factors and head by PEFT's keys; every one of them must fit."""
    result: Any = set_peft_model_state_dict(model, dict(tensors))
    if result.unexpected_keys:
        raise InputError(
            f"the server sent {result.unexpected_keys[0]}, which this model has not: use the same model"
        )


def server_model(task: Task, state: ServerState, seed: int) -> Any:
    """The task's model with the server's whole update in its weights, to score it."""
    model = with_lora(task, list(state.shapes), 1, 1.0, seed)
    load_factors(model, state.head)
    add_to_base(model, {name: state.update(name).dense() for name in state.shapes})
    return model


def final_adapter(task: Task, state: ServerState, seed: int) -> PeftModel:
    """The server's model as one LoRA: its own factors where the base weight stayed, else those of the whole update by
    its SVD, each layer at the rank that it has."""
    if not state.base and all(layer.a is not None for layer in state.layers.values()):
        factors = {name: (layer.a, layer.b, layer.scaling) for name, layer in state.layers.items()}
    else:
        factors = {}
        for name in state.shapes:
            u, s, vh = state.update(name).svd()
            r = max(int((s > s.max() * 1e-7).sum()), 1) if len(s) else 1
            root = s[:r].sqrt()
            factors[name] = (root[:, None] * vh[:r], u[:, :r] * root, 1.0)
    ranks = {name: len(a) for name, (a, _, _) in factors.items() if a is not None}
    tensors = dict(state.head)
    for name, (a, b, scaling) in factors.items():
        assert a is not None and b is not None
        ratio = (scaling / state.scaling) ** 0.5
        tensors[KEY_A.format(name)], tensors[KEY_B.format(name)] = (ratio * a).float(), (ratio * b).float()
    most = max(ranks.values())
    odd = {name: r for name, r in ranks.items() if r != most}
    model = with_lora(task, list(state.shapes), most, state.scaling, seed, odd)
    load_factors(model, {key: value.contiguous() for key, value in tensors.items()})
    return model
