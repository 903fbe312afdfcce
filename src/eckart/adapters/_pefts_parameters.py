"""PEFT's layout of a LoRA on a parameter, whose matrices it holds all at once:

    lora_A.weight (experts · r, in)      one expert's rows after another's
    lora_B.weight (out, r · experts)     columns by direction, and for each direction by expert

Of several parameters of one module the last has its factors under the module's name, the one before it under
``base_layer`` of that, and so on. Where PEFT takes the sides of the matrices for each other, A and B change places.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.functional import pad

from eckart.adapters._checkpoint import MODEL_PREFIX
from eckart.adapters._config import AdapterConfig
from eckart.adapters._matrices import EckartMatrix, EckartParameters, StackedWeight
from eckart.adapters._parameters import all_parameters, find_parameters, stored_transposed
from eckart.errors import InputError

Pair = tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]
AnyRank = tuple[Float[Tensor, "_ in"], Float[Tensor, "out _"]]
Stacked = tuple[Float[Tensor, "rows side"], Float[Tensor, "other rows"]]


def plain_module(model: nn.Module, path: str) -> nn.Module:
    """A module of a model without the adapters on its parameters."""
    module = model.get_submodule(path)
    return module.base_layer if isinstance(module, EckartParameters) else module


def peft_path(model: nn.Module, parameter: str, adapted: Collection[str]) -> str:
    """Where PEFT keeps the factors of a parameter.

    Args:
        model: the base model.
        parameter: the parameter's name there.
        adapted: the names of all parameters that are adapted.
    """
    path, _, name = parameter.rpartition(".")
    own = [other for other in plain_module(model, path)._parameters if f"{path}.{other}" in adapted]
    return path + ".base_layer" * (len(own) - 1 - own.index(name))


def pack(model: nn.Module, parameter: str, pairs: Sequence[AnyRank]) -> Stacked:
    """The factors of all matrices of a parameter as PEFT's two, the thinner ones filled up with zeros."""
    most = max(len(a) for a, _ in pairs)
    a = torch.stack([pad(a, (0, 0, 0, most - len(a))) for a, _ in pairs])
    b = torch.stack([pad(b, (0, most - b.shape[1])) for _, b in pairs])
    if _turned(model, parameter):
        a, b = b.mT, a.mT
    return a.flatten(0, 1).contiguous(), b.permute(1, 2, 0).flatten(1).contiguous()


def unpack(model: nn.Module, parameter: str, a: Tensor, b: Tensor) -> list[Pair]:
    """The factors of each matrix of a parameter from PEFT's two; what `pack` makes, the other way."""
    path, _, name = parameter.rpartition(".")
    value = cast(Tensor, plain_module(model, path)._parameters[name])
    experts = len(value) if value.dim() == 3 else 1
    if len(a) % experts or b.shape[1] != len(a):
        raise InputError(
            f"the factors of {parameter} have shapes {tuple(a.shape)} and {tuple(b.shape)}, which {experts} matrices "
            "do not share: load the adapter on its own base model"
        )
    lefts, rights = a.unflatten(0, (experts, -1)), b.unflatten(1, (-1, experts)).permute(2, 0, 1)
    if _turned(model, parameter):
        lefts, rights = rights.mT, lefts.mT
    return [(left.contiguous(), right.contiguous()) for left, right in zip(lefts, rights, strict=True)]


def _turned(model: nn.Module, parameter: str) -> bool:
    """Whether PEFT takes the inputs of a parameter's matrices for the outputs."""
    path, _, name = parameter.rpartition(".")
    module = plain_module(model, path)
    theirs = cast(Tensor, module._parameters[name]).dim() == 3 and bool(
        getattr(module, "is_transposed", False)
    )
    return theirs != stored_transposed(cast(Any, type(module)), name)


@torch.no_grad()
def stacked_lora(
    model: nn.Module, matrices: Sequence[EckartMatrix], pairs: Sequence[AnyRank], adapted: Collection[str]
) -> tuple[dict[str, Tensor], int]:
    """The factors of a parameter's matrices under PEFT's keys and in its shapes, and their rank, after PEFT was asked
    what it makes of them.

    Args:
        model: the base model.
        matrices: those of the parameter.
        pairs: A and B of each, with the scaling in them.
        adapted: the names of all parameters that are adapted.

    Raises:
        InputError: PEFT cannot hold them or computes something else.
    """
    parameter = matrices[0].shape.stack
    if others := [t.name for t in all_parameters(model) if t.name.endswith(f".{parameter}")]:
        raise InputError(f"PEFT would put the LoRA of {parameter} on {others[0]} as well: merge instead")
    a, b = pack(model, parameter, pairs)
    r = max(len(factor) for factor, _ in pairs)
    _check_in_peft(matrices, pairs, a, b, r)
    path = f"{MODEL_PREFIX}{peft_path(model, parameter, adapted)}"
    return {f"{path}.lora_A.weight": a.cpu(), f"{path}.lora_B.weight": b.cpu()}, r


def _check_in_peft(
    matrices: Sequence[EckartMatrix], pairs: Sequence[AnyRank], a: Tensor, b: Tensor, r: int
) -> None:
    held = cast(StackedWeight, matrices[0].base_layer)
    config = LoraConfig(r=r, lora_alpha=r, target_modules=[], target_parameters=[f"layer.{held.parameter}"])
    frozen = [parameter.requires_grad for parameter in held.module.parameters()]
    try:
        alone = nn.ModuleDict({"layer": held.module})
        theirs = cast(Any, inject_adapter_in_model(config, alone))["layer"]
        theirs.lora_A["default"].weight.data = a
        theirs.lora_B["default"].weight.data = b
        found = theirs.get_delta_weight("default").float()
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"PEFT has no LoRA for parameter {matrices[0].shape.stack} ({str(error).splitlines()[0]}): merge instead"
        ) from None
    finally:
        for parameter, before in zip(held.module.parameters(), frozen, strict=True):
            parameter.requires_grad_(before)
    parts = found if found.dim() == 3 else found.unsqueeze(0)
    for matrix, (left, right), part in zip(matrices, pairs, parts, strict=True):
        expected = matrix.op.to_stored(right.float() @ left.float(), matrix.frozen.stored.shape)
        allowed = 16 * torch.finfo(found.dtype).eps * expected.abs().max() + 4e-3 * expected.abs().max() * (
            a.dtype.itemsize < 4
        )
        if part.shape != expected.shape or (part - expected).abs().max() > allowed:
            raise InputError(
                f"PEFT's LoRA computes something else on parameter {matrix.shape.stack}: use eckart merge"
            )


def unstack(
    model: nn.Module, config: AdapterConfig, factors: Mapping[str, dict[str, Tensor]]
) -> Iterator[tuple[str, str, dict[str, Tensor]]]:
    """The factors of PEFT's checkpoint for each matrix that one of ours has an adapter for.

    Args:
        model: the base model.
        config: with ``target_parameters``.
        factors: by the keys of PEFT's layers, each as ``A`` and ``B``.

    Returns:
        for each the key of its layer here, the name of its layer or parameter in the model, and its factors.
    """
    parameters = {target.name: target.value for target in find_parameters(model, config)}
    places = {f"{MODEL_PREFIX}{peft_path(model, name, parameters)}": name for name in parameters}
    for layer, pair in factors.items():
        parameter = places.get(layer)
        if parameter is None or pair.keys() != {"A", "B"}:
            yield layer, layer.removeprefix(MODEL_PREFIX), pair
            continue
        for index, (a, b) in enumerate(unpack(model, parameter, pair["A"], pair["B"])):
            name = f"{parameter}.{index}" if parameters[parameter].dim() == 3 else parameter
            yield f"{MODEL_PREFIX}{name}", parameter, {"A": a, "B": b}
