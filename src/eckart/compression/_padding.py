"""Sliced models padded with zeros to the shapes of their stock class: the same outputs, nothing saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eckart.compression._census import find_blocks, matrix_shape, set_weight, weight_matrix
from eckart.compression._sliced import SlicedAttention, convert_back, layout_of
from eckart.compression._sliced_config import Layout
from eckart.errors import InputError
from eckart.layers._replacing import install


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
    widths, layout = model.config.compressed_layers, layout_of(model)
    kind: Any = type(model.config).__mro__[1]
    stock_config = kind.from_dict(model.config.to_dict())
    with torch.device("meta"):
        stock = source(stock_config)
    pairs = list(zip(find_blocks(model).values(), find_blocks(stock).values(), strict=True))
    for index, (block, plain) in enumerate(pairs):
        old: Any = block.get_submodule(layout.attention)
        out: Any = plain.get_submodule(f"{layout.attention}.{layout.output}")
        if old.o_proj.bias is not None and out.bias is None and widths[index]["v_dim"] == old.head_dim:
            raise InputError(
                f"layer {index} has an output bias that {source.__name__} cannot hold and no free value coordinate: "
                "compress with vo=True and a larger ratio to merge"
            )
    for block, plain in pairs:
        small: Any = block.get_submodule(layout.attention)
        attention: Any = plain.get_submodule(layout.attention)
        weight = small.q_proj.weight
        attention.to_empty(device=weight.device)
        attention.to(weight.dtype)
        _pad_attention(small, attention, layout)
        for name in ("q_norm", "k_norm"):
            if getattr(small, name, None) is not None:
                setattr(attention, name, getattr(small, name))
        attention.config = model.config
        attention.train(small.training)
        install(block, layout.attention, attention)
        for name in (*layout.up, layout.down):
            new = plain.get_submodule(name).to_empty(device=weight.device).to(weight.dtype)
            layer = block.get_submodule(name)
            _fill(new, weight_matrix(layer), layer.bias)  # type: ignore[arg-type]
            install(block, name, new)
    convert_back(model)
    return model  # type: ignore[no-any-return]


def _fill(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Put a smaller matrix and bias into the corner of a layer, zeros around."""
    own: Any = layer
    whole = weight.new_zeros(matrix_shape(layer))
    whole[: weight.shape[0], : weight.shape[1]] = weight
    set_weight(layer, whole)
    if own.bias is not None:
        own.bias.zero_()
        if bias is not None:
            own.bias[: len(bias)] = bias


def _pad_attention(old: SlicedAttention, new: Any, layout: Layout) -> None:
    d, out = old.head_dim, getattr(new, layout.output)
    index = old.rope_index if layout.rotary else torch.arange(old.qk_dim).expand(old.kv_heads, -1)
    padded = [_spread(old.q_proj, old.heads, index, d), _spread(old.k_proj, old.kv_heads, index, d)]
    values = torch.arange(old.v_dim).expand(old.kv_heads, -1)
    value, value_bias = _spread(old.v_proj, old.kv_heads, values, d)
    outputs = value.new_zeros(len(old.o_proj.weight), old.heads, d)
    outputs[..., : old.v_dim] = old.o_proj.weight.view(-1, old.heads, old.v_dim)
    bias: Tensor | None = old.o_proj.bias
    if out.bias is None and bias is not None:
        value_bias[old.v_dim] = 1
        outputs[:, 0, old.v_dim] = bias
    padded.append((value, value_bias))
    _fill(out, outputs.flatten(1), bias)
    if len(layout.inputs) == 1:
        padded = [tuple(torch.cat(part) for part in zip(*padded, strict=True))]  # type: ignore[list-item]
    for name, pair in zip(layout.inputs, padded, strict=True):
        _fill(getattr(new, name), *pair)


def _spread(layer: nn.Linear, heads: int, index: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Rows and bias of a projection at the coordinates that they had among d of each head, zeros between."""
    places = index.to(layer.weight.device).repeat_interleave(heads // len(index), 0)
    rows = (places + d * torch.arange(heads, device=places.device).unsqueeze(1)).flatten()
    weight = layer.weight.new_zeros(heads * d, layer.in_features)
    bias = weight.new_zeros(heads * d)
    weight[rows] = layer.weight.detach()
    if layer.bias is not None:
        bias[rows] = layer.bias.detach()
    return weight, bias
