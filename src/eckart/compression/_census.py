"""What of a model may be compressed: its blocks, its layers, and what stands in the way."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.compression._layers import CompressedLayer
from eckart.errors import InputError
from eckart.layers._replacing import refuse_adapter, refuse_wrapped

FEW_OUTPUTS = 10
"""Layers with fewer outputs are heads and gates; nothing is to be saved there."""


@dataclass(frozen=True)
class Outline:
    """The parts of a model that a method may change.

    Attributes:
        model: the model.
        blocks: its chain of blocks by name, each taking the output of the one before; one block "" that is the whole
            model where it has no such chain.
        layers: the layers that may be replaced by name, in model order.
        shared: names of layers left out since another part of the model uses their weight too.
    """

    model: nn.Module
    blocks: dict[str, nn.Module]
    layers: dict[str, nn.Module]
    shared: tuple[str, ...] = ()
    chained: bool = field(default=True)

    def inside(self, block: str) -> dict[str, nn.Module]:
        """The layers of one block, by full name."""
        prefix = f"{block}." if block else ""
        return {name: layer for name, layer in self.layers.items() if name.startswith(prefix)}

    @property
    def parameters(self) -> int:
        """How many numbers the weights of the layers hold."""
        return sum(matrix_shape(layer)[0] * matrix_shape(layer)[1] for layer in self.layers.values())


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer stores its weight as (in, out): transformers' Conv1D."""
    return type(layer).__name__ == "Conv1D" and type(layer).__module__ == "transformers.pytorch_utils"


def weight_matrix(layer: nn.Module) -> Float[Tensor, "out in"]:
    """The weight of a linear layer as (out, in); of a convolution as (N, C·H·W)."""
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    return weight.T if is_transposed(layer) else weight.reshape(weight.shape[0], -1)


def set_weight(layer: nn.Module, weight: Float[Tensor, "out in"]) -> None:
    """Copy a matrix into a linear layer."""
    own: Tensor = layer.weight  # type: ignore[assignment]
    own.copy_(weight.T if is_transposed(layer) else weight)


def matrix_shape(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of `weight_matrix`, or (num, dim) of an embedding."""
    out_features, in_features = weight_matrix(layer).shape
    return out_features, in_features


def census(model: nn.Module, kinds: tuple[type[nn.Module], ...], exclude: Sequence[str] = ()) -> Outline:
    """Find the blocks and the layers that may be replaced, without changing anything.

    Left out are layers whose weight another module shares (tied embeddings), parametrised ones, embeddings that rescale
    their own rows (max_norm), subclasses with a forward of their own, output heads, layers with fewer than ten outputs,
    and in a model with a chain of blocks everything outside of it.

    Args:
        model: a dense model.
        kinds: the types that the method replaces, exactly these.
        exclude: regular expressions that match whole names, or ends of names after a dot.

    Raises:
        InputError: a model that is compressed or quantised already, wrapped or has adapters; NaN in a weight or none; a
            pattern that matches nothing; no layer left.
    """
    refuse_wrapped(model, "compress")
    refuse_compressed(model)
    left_out = {pattern: _ending(model, pattern) for pattern in exclude}
    for pattern, names in left_out.items():
        if not names:
            some = next((name for name, m in model.named_modules() if type(m) in kinds), "")
            raise InputError(
                f"exclude {pattern!r} matches no module of {type(model).__name__}: give names such as {some}, or ends"
            )
    blocks = find_blocks(model)
    owners = Counter(
        id(p) for module in model.modules() for p in module._parameters.values() if p is not None
    )
    head = _output_head(model)
    layers: dict[str, nn.Module] = {}
    shared = []
    for name, module in model.named_modules(remove_duplicate=False):
        fits = type(module) in kinds or (nn.Linear in kinds and is_transposed(module))
        if not fits or not name or module is head or any(module is found for found in layers.values()):
            continue
        if blocks and not any(name.startswith(f"{block}.") for block in blocks):
            continue
        if any(name in names for names in left_out.values()):
            continue
        if hasattr(module, "parametrizations") or "weight" not in module._parameters:
            continue
        if getattr(module, "max_norm", None) is not None:
            continue
        if owners[id(module.weight)] > 1:
            shared.append(name)
            continue
        _refuse_kind(name, module.weight)
        if not isinstance(module, nn.Embedding) and matrix_shape(module)[0] < FEW_OUTPUTS:
            continue
        layers[name] = module
    if not layers:
        wanted = ", ".join(kind.__name__ for kind in kinds)
        raise InputError(
            f"{type(model).__name__} has no layer to compress: needed is a {wanted} in it whose weight is its own, "
            f"with at least {FEW_OUTPUTS} outputs"
        )
    for name, module in layers.items():
        if not bool(torch.isfinite(module.weight).all()):  # type: ignore[arg-type]
            raise InputError(f"the weight of layer {name} holds NaN or Inf: load another checkpoint")
    return Outline(model, blocks or {"": model}, layers, tuple(shared), bool(blocks))


def _ending(model: nn.Module, pattern: str) -> set[str]:
    """The modules whose whole name a regular expression matches, or the end of it after a dot."""
    whole = re.compile(pattern)
    return {
        name
        for name, _ in model.named_modules(remove_duplicate=False)
        if any(whole.fullmatch(name, start) for start in (0, *(m.end() for m in re.finditer(r"\.", name))))
    }


def refuse_compressed(model: nn.Module) -> None:
    """Refuse a model that is compressed or quantised already, or has adapters.

    Raises:
        InputError: naming the layer or the quantisation.
    """
    for name, module in model.named_modules():
        if isinstance(module, CompressedLayer):
            raise InputError(
                f"layer {name} is compressed already ({module.kind}, rank {getattr(module, 'rank', '?')}): start from "
                "the dense model, or make this one dense with eckart.compression.merge"
            )
        refuse_adapter(name, module, "compress")
    config = getattr(model, "config", None)
    if getattr(config, "compressed_layers", None):
        raise InputError(f"{type(model).__name__} is compressed already: start from the dense model")
    quantisation = getattr(config, "quantization_config", None)
    if getattr(quantisation, "quant_method", None) == "eckart-structured":
        raise InputError(
            "the model has structured layers: make it dense with eckart.layers.to_dense, then compress it"
        )
    if quantisation is not None:
        raise InputError("the model is quantised: compress it first, then quantise what comes out")


def _refuse_kind(name: str, weight: Any) -> None:
    """Refuse a weight that has no numbers to decompose.

    Raises:
        InputError: on meta, quantised, or in 8 bits.
    """
    kind = "on meta" if weight.is_meta else f"of {weight.dtype}"
    plain = weight.is_floating_point() and weight.itemsize > 1 and not weight.is_meta
    if type(weight.data) is not Tensor:
        plain, kind = False, f"a {type(weight.data).__name__}"
    if not plain:
        raise InputError(
            f"the weight of layer {name} is {kind}: load the model in bfloat16 or wider, compress it, then quantise"
        )


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The chain of blocks of a transformer: the one list of two or more modules of one class that hold linear layers.

    Returns:
        Name → block, or nothing where there is no list or more than one (an encoder beside a decoder).
    """
    found: list[dict[str, nn.Module]] = []
    prefixes: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(name.startswith(prefix) for prefix in prefixes):
            continue
        alike = len(module) > 1 and len({type(child) for child in module}) == 1
        linear = all(any(isinstance(m, nn.Linear) or is_transposed(m) for m in c.modules()) for c in module)
        if alike and linear and not isinstance(module[0], nn.Linear):
            prefixes.append(f"{name}.")
            found.append({f"{name}.{i}": child for i, child in enumerate(module)})
    return found[0] if len(found) == 1 else {}


def _output_head(model: nn.Module) -> Any:
    """The layer whose outputs are the logits of a language model, if the model knows it."""
    get = getattr(model, "get_output_embeddings", None)
    try:
        return get() if callable(get) else None
    except NotImplementedError:
        return None


@contextlib.contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """A model in training or eval mode; afterwards each of its modules is in its own again, new ones in the model's."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        model.train(modes[model])
        for module, mode in modes.items():
            module.training = mode
