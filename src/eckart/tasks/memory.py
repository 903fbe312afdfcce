"""The size of a model in training: the precision of its frozen base, eight bits, and steps that are cut into parts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import torch
from torch import nn
from torch.utils._pytree import tree_map

from eckart.errors import InputError
from eckart.extras import require
from eckart.tasks.instruments import device
from eckart.tasks.options import Memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FULL_BYTES = 16
"""Of each number that is trained in float32: itself, its gradient and the two moments of AdamW."""


def check_machine(memory: Memory) -> None:
    """Refuse what this machine cannot do, before anything is loaded.

    Raises:
        InputError: float16 without a GPU, a quantised base without torchao.
    """
    if memory.dtype == "fp16" and device().type != "cuda":
        raise InputError("--dtype fp16 needs a GPU, whose loss is scaled: bf16 is as small and needs none")
    if memory.quantize is not None:
        require("torchao", extra="quant")


def fit(model: Any, heads: Collection[str], memory: Memory, name: str) -> None:
    """Bring a base to its size in training, in place: what an adapter trains, and the head, stay float32.

    Args:
        model: as it was loaded, in float32.
        heads: names of the modules that are trained whole.
        memory: what is wanted.
        name: of the model, for messages.

    Raises:
        InputError: a saving that the model has not.
    """
    if memory.gradient_checkpointing and not getattr(model, "supports_gradient_checkpointing", False):
        raise InputError(
            f"--gradient-checkpointing: {name} ({type(model).__name__}) has none in transformers; leave it out"
        )
    if memory.quantize is not None:
        _quantise(model, heads, memory.quantize, name)
    if memory.dtype == "fp32":
        return
    model.to(DTYPES[memory.dtype])
    model.register_forward_pre_hook(_cast_pixels, with_kwargs=True)
    for head in heads:
        module = model.get_submodule(head)
        module.float()
        module.register_forward_pre_hook(_cast_to_float)


def free_memory() -> int:
    """Bytes that are free where runs take place."""
    if device().type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return int(require("psutil", extra="compare").virtual_memory().available)


def full_memory(parameters: int) -> str:
    """Why full fine-tuning cannot fit in the memory that is free; nothing where it can."""
    free, needed = free_memory(), FULL_BYTES * parameters
    if needed <= free:
        return ""
    return (
        f"full fine-tuning is left out: {parameters:,} numbers in float32 with gradients and AdamW's moments take "
        f"{needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free"
    )


def _quantise(model: Any, heads: Collection[str], code: str, name: str) -> None:
    """The linear layers in eight bits, each row with a scale, or in four, each block; the head, and the output that is
    tied to the embedding or gives tokens, stay."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    within = tuple(f"{head}." for head in heads)
    chosen = {
        id(module)
        for path, module in model.named_modules()
        if type(module) is nn.Linear and module is not output and not f"{path}.".startswith(within)
    }
    if not chosen:
        raise InputError(f"--quantize {code}: {name} has no linear layers beside its head; leave it out")
    if code == "int8":
        torchao = require("torchao.quantization", extra="quant")
        torchao.quantize_(
            model, torchao.Int8WeightOnlyConfig(), filter_fn=lambda module, path: id(module) in chosen
        )
        return
    from eckart.tasks.four_bits import Code, FourBits

    for module in model.modules():
        if id(module) in chosen:
            module.weight = nn.Parameter(FourBits.of(module.weight, cast(Code, code)), requires_grad=False)


def _cast_pixels(module: nn.Module, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    dtype = next(p.dtype for p in module.parameters() if p.is_floating_point())
    if "pixel_values" in inputs:
        inputs = {**inputs, "pixel_values": inputs["pixel_values"].to(dtype)}
    return args, inputs


def _cast_to_float(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Also what stands in a list, as the layers' states that a decoder of pixels takes do."""
    cast: tuple[Any, ...] = tree_map(
        lambda a: a.float() if torch.is_tensor(a) and a.is_floating_point() else a, args
    )
    return cast
