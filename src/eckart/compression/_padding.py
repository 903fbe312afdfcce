"""Sliced models padded with zeros to the shapes of their stock class: the same outputs, nothing saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from eckart.compression._census import find_blocks
from eckart.compression._sliced import SlicedAttention, convert_back
from eckart.errors import InputError


@torch.no_grad()
def pad(model: Any) -> nn.Module:
    """Make a sliced model one of its stock class, in place.

    A dropped pair of queries and keys adds nothing to a score, a dropped value or unit nothing to a sum. An output
    bias that the stock class has no place for becomes one value coordinate that is constant: the weights of attention
    sum to one.

    Raises:
        InputError: such a bias and no dropped value coordinate to put it in; nothing was changed.
    """
    source = type(model).__mro__[1]
    widths = model.config.compressed_layers
    kind: Any = type(model.config).__mro__[1]
    stock_config = kind.from_dict(model.config.to_dict())
    with torch.device("meta"):
        stock = source(stock_config)
    pairs = list(zip(find_blocks(model).values(), find_blocks(stock).values(), strict=True))
    for index, (block, plain) in enumerate(pairs):
        homeless = block.self_attn.o_proj.bias is not None and plain.self_attn.o_proj.bias is None  # type: ignore[union-attr]
        if homeless and widths[index]["v_dim"] == block.self_attn.head_dim:  # type: ignore[union-attr]
            raise InputError(
                f"layer {index} has an output bias that {source.__name__} cannot hold and no free value coordinate: "
                "compress with vo=True and a larger ratio to merge"
            )
    for block, plain in pairs:
        old: Any = block.self_attn
        plain_attention: Any = plain.self_attn
        weight = old.q_proj.weight
        plain_attention.to_empty(device=weight.device)
        plain_attention.to(weight.dtype)
        _pad_attention(old, plain_attention)
        for name in ("q_norm", "k_norm"):
            if getattr(old, name, None) is not None:
                setattr(plain_attention, name, getattr(old, name))
        plain_attention.config = model.config
        plain_attention.train(old.training)
        block.self_attn = plain_attention
        for name in ("gate_proj", "up_proj", "down_proj"):
            mlp: Any = block.mlp
            new = getattr(plain.mlp, name).to_empty(device=weight.device).to(weight.dtype)
            _pad_linear(getattr(mlp, name), new)
            setattr(mlp, name, new)
    convert_back(model)
    return model  # type: ignore[no-any-return]


def _pad_linear(old: nn.Linear, new: nn.Linear) -> None:
    new.weight.zero_()
    new.weight[: old.out_features, : old.in_features] = old.weight
    if new.bias is not None:
        new.bias.zero_()
        new.bias[: old.out_features] = old.bias


def _pad_attention(old: SlicedAttention, new: Any) -> None:
    d, index = old.head_dim, old.rope_index
    for name, heads in (("q_proj", old.heads), ("k_proj", old.kv_heads)):
        places = index.repeat_interleave(heads // old.kv_heads, 0)
        rows = (places + d * torch.arange(heads, device=index.device).unsqueeze(1)).flatten()
        small, large = getattr(old, name), getattr(new, name)
        large.weight.zero_()
        large.weight[rows] = small.weight
        if large.bias is not None:
            large.bias.zero_()
            large.bias[rows] = small.bias
    values = new.v_proj.weight.zero_().view(old.kv_heads, d, -1)
    values[:, : old.v_dim] = old.v_proj.weight.view(old.kv_heads, old.v_dim, -1)
    outputs = new.o_proj.weight.zero_().view(-1, old.heads, d)
    outputs[..., : old.v_dim] = old.o_proj.weight.view(-1, old.heads, old.v_dim)
    if new.v_proj.bias is not None:
        new.v_proj.bias.zero_()
    bias = old.o_proj.bias
    if new.o_proj.bias is not None:
        new.o_proj.bias.zero_()
        if bias is not None:
            new.o_proj.bias.copy_(bias)
    elif bias is not None:
        new.v_proj.bias[old.v_dim] = 1
        outputs[:, 0, old.v_dim] = bias
