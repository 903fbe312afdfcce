"""Attention and MLPs of fewer dimensions than their config says, as transformers models of their own.

The config is the source model's with a model type of its own (`eckart_llama` for `llama`) and a field
``compressed_layers`` with the widths of every layer; its model class is the source's, which takes these widths once it
is built. Importing this module makes it known to transformers' Auto classes.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from eckart.compression._census import find_blocks, is_transposed, weight_matrix
from eckart.compression._sliced_config import FAMILIES, PREFIX, Layout
from eckart.errors import InputError
from eckart.layers._replacing import install

_AUTO = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
)


class Projection(NamedTuple):
    """A matrix (out, in) and its bias."""

    weight: Tensor
    bias: Tensor | None


def projections(attention: Any, layout: Layout) -> tuple[Projection, Projection, Projection, Projection]:
    """Queries, keys, values and outputs of an attention module, taken apart where they are fused."""
    layers = [getattr(attention, name) for name in (*layout.inputs, layout.output)]
    *inputs, output = (Projection(weight_matrix(layer), layer.bias) for layer in layers)
    if len(inputs) == 1:
        ((weight, bias),) = inputs
        biases = (None,) * 3 if bias is None else bias.detach().chunk(3)
        inputs = [Projection(*pair) for pair in zip(weight.chunk(3), biases, strict=True)]
    return *inputs, output  # type: ignore[return-value]


class SlicedAttention(nn.Module):
    """Attention whose queries and keys have ``qk_dim`` coordinates and whose values have ``v_dim``.

    Kept coordinates keep their own rotation, whose numbers ``rope_index`` (kv heads, qk_dim) holds, and the scale of
    the scores stays that of the original head dimension.

    Args:
        source: the attention module that is replaced; its projections are not used.
        layout: of its family.
        qk_dim: coordinates of each query and key head.
        v_dim: coordinates of each value head.
        o_bias: whether the output projection has a bias.
    """

    config: Any
    head_dim: int
    layer_idx: int
    scaling: float
    attention_dropout: float
    rope_index: Tensor

    def __init__(self, source: Any, layout: Layout, qk_dim: int, v_dim: int, o_bias: bool) -> None:
        super().__init__()
        for name in ("config", "layer_idx", "head_dim", "scaling", "is_causal"):
            setattr(self, name, getattr(source, name))
        self.num_key_value_groups = getattr(source, "num_key_value_groups", 1)
        self.attention_dropout = _attention_dropout(source)
        self.resid_dropout = getattr(source, "resid_dropout", None)
        q, k, _, o = projections(source, layout)
        options: dict[str, Any] = {"device": q.weight.device, "dtype": q.weight.dtype}
        hidden, head_dim = q.weight.shape[1], int(source.head_dim)
        self.heads, self.kv_heads = len(q.weight) // head_dim, len(k.weight) // head_dim
        self.qk_dim, self.v_dim = qk_dim, v_dim
        self.q_proj = nn.Linear(hidden, self.heads * qk_dim, bias=q.bias is not None, **options)
        self.k_proj = nn.Linear(hidden, self.kv_heads * qk_dim, bias=k.bias is not None, **options)
        self.v_proj = nn.Linear(hidden, self.kv_heads * v_dim, bias=False, **options)
        self.o_proj = nn.Linear(self.heads * v_dim, len(o.weight), bias=o_bias, **options)
        self.q_norm, self.k_norm = getattr(source, "q_norm", None), getattr(source, "k_norm", None)
        window = getattr(source, "sliding_window", None)
        if self.config.model_type.removeprefix(PREFIX) == "mistral":
            window = getattr(self.config, "sliding_window", None)
        self.extra = {} if window is None else {"sliding_window": window}
        if layout.rotary:
            index = torch.arange(qk_dim, device=options["device"]).expand(self.kv_heads, qk_dim).clone()
            self.register_buffer("rope_index", index)

    @property
    def spec(self) -> dict[str, Any]:
        """The widths of this module, as JSON holds them."""
        return {
            "kind": "attention",
            "qk_dim": self.qk_dim,
            "v_dim": self.v_dim,
            "o_bias": self.o_proj.bias is not None,
        }

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        shape = hidden_states.shape[:-1]
        query = self.q_proj(hidden_states).view(*shape, self.heads, self.qk_dim)
        key = self.k_proj(hidden_states).view(*shape, self.kv_heads, self.qk_dim)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        if position_embeddings is not None:
            query, key = self._rotate(query, key, *position_embeddings)
        value = self.v_proj(hidden_states).view(*shape, self.kv_heads, self.v_dim).transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        out, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=self.scaling,
            **self.extra,
            **kwargs,
        )
        out = self.o_proj(out.reshape(*shape, -1).contiguous())
        return out if self.resid_dropout is None else self.resid_dropout(out), weights

    def _rotate(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        if self.qk_dim == self.head_dim:
            return apply_rotary_pos_emb(query, key, cos, sin)  # type: ignore[no-any-return]
        cos, sin = (table[..., self.rope_index].transpose(-3, -2) for table in (cos, sin))
        grouped = query.reshape(query.shape[0], self.kv_heads, -1, *query.shape[2:])
        rotated = grouped * cos.unsqueeze(2) + _half_turned(grouped) * sin.unsqueeze(2)
        return rotated.flatten(1, 2), key * cos + _half_turned(key) * sin


def _attention_dropout(source: Any) -> float:
    """The dropout of the attention weights, under the names that the families have for it."""
    if hasattr(source, "attn_dropout"):
        return float(source.attn_dropout.p)
    return float(source.attention_dropout if hasattr(source, "attention_dropout") else source.dropout)


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def take_widths(model: nn.Module, widths: list[dict[str, Any]]) -> None:
    """Give the blocks of a model the widths of its config; their numbers are to be loaded.

    Raises:
        InputError: another number of layers than the config has widths for.
    """
    blocks = list(find_blocks(model).values())
    if len(blocks) != len(widths):
        raise InputError(
            f"compressed_layers has {len(widths)} entries, the model {len(blocks)} layers: the config is damaged"
        )
    layout = layout_of(model)
    for block, width in zip(blocks, widths, strict=True):
        source = block.get_submodule(layout.attention)
        if isinstance(source, SlicedAttention):  # a head around a backbone that has its widths already
            continue
        new = SlicedAttention(source, layout, width["qk_dim"], width["v_dim"], width["o_bias"])
        install(block, layout.attention, new)
        for name in (*layout.up, layout.down):
            install(block, name, resized(block.get_submodule(name), width["mlp_dim"], name == layout.down))


def layout_of(model: Any) -> Layout:
    """Where the blocks of a model that can be sliced, or is, have their projections."""
    return FAMILIES[model.config.model_type.removeprefix(PREFIX)]


def resized(layer: Any, width: int, inward: bool) -> Any:
    """An MLP projection with another number of hidden units, its numbers not yet set.

    Args:
        layer: linear, or transformers' Conv1D.
        width: hidden units.
        inward: whether the units are its inputs.
    """
    out, features = weight_matrix(layer).shape
    features, out = (width, out) if inward else (features, width)
    if is_transposed(layer):
        return type(layer)(out, features).to(layer.weight)
    options = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    return nn.Linear(features, out, bias=layer.bias is not None, **options)


def config_of(family: str) -> type[Any]:
    """The config class for sliced models of a family."""
    source: Any = CONFIG_MAPPING[family]
    return sliced_config(source)


@cache
def sliced_config(source: Any) -> type[Any]:
    """The config class for sliced models of this one."""
    body = {
        "model_type": f"{PREFIX}{source.model_type}",
        "__module__": __name__,
        "__doc__": f"{source.__name__} with the widths of every layer in compressed_layers.",
    }
    return _named(source, body)


def _named(source: Any, body: dict[str, Any]) -> type[Any]:
    """A class beside its source, found under its name here, as pickle looks for it."""
    found = type(f"Eckart{source.__name__}", (source,), body)
    globals()[found.__name__] = found
    return found


@cache
def sliced_model(source: Any) -> type[Any]:
    """The model class for sliced models of this one."""

    def __init__(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        source.__init__(self, config, *arguments, **options)
        take_widths(self, config.compressed_layers)

    body = {
        "__init__": __init__,
        "__module__": __name__,
        "config_class": sliced_config(source.config_class),
        "__doc__": f"{source.__name__} whose layers have the widths of config.compressed_layers.",
    }
    return _named(source, body)


def convert(model: Any, widths: list[dict[str, Any]]) -> None:
    """Turn a model whose modules were sliced in place into one of the sliced classes."""
    stock: Any = type(model.config)
    model.config.__class__ = sliced_config(stock)
    model.config.compressed_layers = widths
    kind: Any = type(model)
    model.__class__ = sliced_model(kind)
    model.config.architectures = [type(model).__name__]


def convert_back(model: Any) -> None:
    """Turn a model whose modules have their full widths again into one of the stock classes."""
    del model.config.compressed_layers
    model.config.__class__ = type(model.config).__mro__[1]
    model.__class__ = type(model).__mro__[1]
    model.config.architectures = [type(model).__name__]


def _register() -> None:
    for family in FAMILIES:
        source, config = CONFIG_MAPPING[family], config_of(family)
        for auto in _AUTO:
            known = getattr(modeling_auto, auto)
            if source in known._model_mapping:
                known.register(config, sliced_model(known._model_mapping[source]), exist_ok=True)


_register()
