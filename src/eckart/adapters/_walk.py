"""The one walk over the adapters of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.adapters._adapted import AdaptedWeight
from eckart.adapters._base import Adapter, LowRankAdapter
from eckart.adapters._checkpoint import MODEL_PREFIX
from eckart.adapters._prompt_layer import PromptLayer
from eckart.adapters._prompts import Prompt
from eckart.errors import InputError


def walk(
    model: nn.Module, adapter_name: str | None = None
) -> Iterator[tuple[str, AdaptedWeight, str, Adapter]]:
    """Every adapter in a model, in the order of its layers: the layer's name in the base model, the layer, the
    adapter's name and the adapter.

    Args:
        model: a model with adapters.
        adapter_name: which adapter; in each layer the active ones when None.

    Raises:
        InputError: there is none.
    """
    found = False
    for path, layer in model.named_modules():
        if not isinstance(layer, AdaptedWeight):
            continue
        for name in layer.active_adapters if adapter_name is None else [adapter_name]:
            if name in layer.eckart_adapters:
                found = True
                yield path.removeprefix(MODEL_PREFIX), layer, name, layer.adapter(name)
    if not found:
        if any(isinstance(module, PromptLayer) for module in model.modules()):
            raise InputError(
                "this model has a prompt, which changes its input and no layer: adapt layers for this"
            )
        _refuse_none(adapter_name)


def ranks_of(model: nn.Module, adapter_name: str | None = None) -> dict[str, int]:
    """How many directions each layer's adapter uses, by the layer's name; empty where the method has no ranks.

    Args:
        model: a model with adapters.
        adapter_name: which adapter; in each layer the active ones when None, and then their sum.

    Raises:
        InputError: there is none.
    """
    found: dict[str, int] = {}
    for layer, _, _, adapter in walk(model, adapter_name):
        if isinstance(adapter, LowRankAdapter):
            found[layer] = found.get(layer, 0) + adapter.active_rank
    return found


def walk_trained(model: nn.Module, adapter_name: str | None = None) -> Iterator[Adapter | Prompt]:
    """Every adapter and every prompt in a model.

    Args:
        model: a model with adapters.
        adapter_name: which adapter; the active ones when None.

    Raises:
        InputError: there is none.
    """
    found = False
    for layer in model.modules():
        if not isinstance(layer, AdaptedWeight | PromptLayer):
            continue
        for name in layer.active_adapters if adapter_name is None else [adapter_name]:
            if name in layer.eckart_adapters:
                found = True
                yield layer.adapter(name)
    if not found:
        _refuse_none(adapter_name)


def _refuse_none(adapter_name: str | None) -> NoReturn:
    which = "no active adapter" if adapter_name is None else f"no adapter {adapter_name!r}"
    raise InputError(f"this model has {which} of eckart's: make one with eckart.adapt or get_peft_model")


def lr_scales(model: nn.Module, adapter_name: str | None = None) -> dict[str, float]:
    """Factors on the learning rate that methods ask for, by the names of the model's parameters; only those that are
    not 1. A parameter of no adapter of ours may carry its own, as ``lr_scale``.

    Args:
        model: a model with adapters.
        adapter_name: which adapter; the active ones when None.
    """
    asked = {id(p): p.lr_scale for p in model.parameters() if hasattr(p, "lr_scale")}
    if not any(isinstance(module, AdaptedWeight | PromptLayer) for module in model.modules()):
        return {name: asked[id(p)] for name, p in model.named_parameters() if id(p) in asked}
    asked |= {
        id(parameter): factor
        for adapter in walk_trained(model, adapter_name)
        for name, factor in adapter.lr_scale.items()
        if (parameter := adapter.get_parameter(name)) is not None and factor != 1
    }
    return {name: asked[id(p)] for name, p in model.named_parameters() if id(p) in asked}


def regularization(model: nn.Module, adapter_name: str | None = None) -> Float[Tensor, ""]:
    """The sum of `Adapter.regularization` over the adapters of a model, to be added to the loss times a factor.

    Args:
        model: a model with adapters.
        adapter_name: which adapter; the active ones when None.

    Raises:
        InputError: no adapter has a term.
    """
    terms = [adapter.regularization() for _, _, _, adapter in walk(model, adapter_name)]
    found = [term for term in terms if term is not None]
    if not found:
        raise InputError(
            "no active adapter of this model has a regularization term; SALT is a method that has one"
        )
    return torch.stack([term.to(found[0].device) for term in found]).sum()
