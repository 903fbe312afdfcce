"""What programs that serve adapters ask of a LoRA checkpoint, and what PEFT makes of one."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from eckart.adapters._adapted import AdaptedWeight
from eckart.adapters._census import probe_input
from eckart.adapters._peft_layer import EckartLayer
from eckart.errors import InputError

Server = Literal["vllm", "sglang", "llama.cpp"]
RANKS: Mapping[str, Sequence[int]] = {"vllm": (1, 8, 16, 32, 64, 128, 256, 320, 512)}
"""The values that vLLM takes for ``max_lora_rank``; the others name none."""


def check_server(server: str, layers: Mapping[str, AdaptedWeight], modules: Sequence[str]) -> None:
    """Refuse what no server applies.

    Args:
        server: its name.
        layers: what is adapted, by name.
        modules: names of tensors of modules that were trained in full.

    Raises:
        InputError: another server, modules trained in full, a convolution or a parameter.
    """
    if server not in get_args(Server):
        raise InputError(f"server is {server!r}: give {', '.join(get_args(Server))}")
    if modules:
        raise InputError(
            f"{server} does not load modules trained in full, and this adapter has {min(modules)}: "
            "serve the merged model instead, see eckart merge"
        )
    for name, layer in layers.items():
        if layer.shape.stack:
            raise InputError(
                f"{server} takes no LoRA on a parameter such as {layer.shape.stack}: serve the merged model instead"
            )
        if layer.op.kind == "conv":
            raise InputError(
                f"{server} takes no LoRA on a convolution such as {name}: serve the merged model instead"
            )


def served_rank(server: str, most: int) -> int:
    """The smallest rank that a server takes and that holds ``most``.

    Raises:
        InputError: there is none.
    """
    ranks = RANKS.get(server)
    if ranks is None:
        return most
    place = bisect.bisect_left(ranks, most)
    if place == len(ranks):
        raise InputError(
            f"r is {most}, and {server} takes no more than {ranks[-1]}: give r={ranks[-1]}, or merge"
        )
    return ranks[place]


def pad_rank(key: str, factor: Tensor, r: int) -> Tensor:
    """One factor of a linear layer or an embedding with rows (A) or columns (B) of zeros up to a rank."""
    rows = "lora_A" in key or "lora_embedding_A" in key
    missing = r - factor.shape[0 if rows else 1]
    return pad(factor, (0, 0, 0, missing) if rows else (0, missing))


@torch.no_grad()
def check_in_peft(
    name: str, layer: EckartLayer, factors: Mapping[str, Tensor], delta: Tensor, r: int
) -> None:
    """Give a layer and its exported factors to plain PEFT and compare what it computes with ΔW.

    Args:
        name: the layer's name.
        layer: the adapted layer, unchanged.
        factors: by their keys in the checkpoint.
        delta: B A as a matrix (out, in).
        r: their rank.

    Raises:
        InputError: PEFT cannot hold them or computes something else.
    """
    base = layer.get_base_layer()
    weight = getattr(base, "weight", None)
    if layer.frozen.backend is not None or weight is None or weight.is_meta or hasattr(base, "embed_scale"):
        return
    x = probe_input(layer.op, weight, layer.shape.weight)
    alone = nn.ModuleDict({"layer": base})
    config = LoraConfig(r=r, lora_alpha=r, target_modules=["layer"], fan_in_fan_out=isinstance(base, Conv1D))
    frozen = [parameter.requires_grad for parameter in base.parameters()]
    try:
        theirs = cast(Any, inject_adapter_in_model(config, alone))["layer"].eval()
        for key, factor in factors.items():
            side = key.rpartition(f"{name}.")[2].removesuffix(".weight")
            own = getattr(theirs, side)["default"]
            target: Tensor = getattr(own, "weight", own)
            target.data = factor.to(target)
        found = theirs(x).double() - base(x).double()
        expected = layer.op.apply(x, delta.to(weight.dtype).reshape(layer.shape.weight), None).double()
        wrong = found.shape != expected.shape or (found - expected).abs().max() > _allowed(
            weight, base(x), expected
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"PEFT has no LoRA for layer {name} ({str(error).splitlines()[0]}): merge instead"
        ) from None
    finally:
        for parameter, before in zip(base.parameters(), frozen, strict=True):
            parameter.requires_grad_(before)
    if wrong:
        options = {key: getattr(base, key) for key in ("padding_mode", "dilation") if hasattr(base, key)}
        told = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise InputError(f"PEFT's LoRA computes something else on layer {name} ({told}): use eckart merge")


def _allowed(weight: Tensor, result: Tensor, branch: Tensor) -> float:
    """Rounding of the result, in which the branch is a difference."""
    epsilon = max(torch.finfo(weight.dtype).eps, 1e-6)
    return float(16 * epsilon * (result.double().abs().max() + branch.abs().max()))
