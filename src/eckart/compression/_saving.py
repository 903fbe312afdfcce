"""Compressed models on disk: whole directories that `from_pretrained` loads, or a pair of files for plain modules."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eckart.compression._census import Outline, is_transposed
from eckart.compression._kinds import build_layer
from eckart.compression._layers import CompressedLayer, FactorizedLinear, Spec
from eckart.compression._layout import by_columns
from eckart.compression._method import Compressor
from eckart.compression._report import Report
from eckart.errors import InputError
from eckart.escapes import cells
from eckart.files import atomic_directory
from eckart.layers._replacing import install
from eckart.tensors import read_finite

SPECS = "compression.json"
WEIGHTS = "model.safetensors"
TABLE = "layers.csv"


def mark(model: nn.Module, method: str, specs: Mapping[str, Spec]) -> None:
    """Let a transformers model carry its specs in its config, its factors as loading would lay them; plain modules need
    nothing.
    """
    if not is_pretrained(model):
        return
    from eckart.compression._quantizer import EckartConfig, EckartQuantizer

    config = EckartConfig(method, dict(specs))
    carrier: Any = model
    carrier.config.quantization_config = config
    carrier.hf_quantizer = EckartQuantizer(config)
    for layer in model.modules():
        if isinstance(layer, FactorizedLinear):
            by_columns(layer.B.weight)


def is_pretrained(model: nn.Module) -> bool:
    """Whether a model is one of transformers'."""
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def report(model: nn.Module) -> Report | None:
    """What `compress` did to a model, in this process."""
    found = getattr(model, "eckart_report", None)
    return found if isinstance(found, Report) else None


def save(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    tokenizer: Any = None,
    about: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write a compressed model: safetensors, its specs, a card and the table of layers; whole or not at all.

    Args:
        model: a model that `compress` has made; of transformers, or a plain module.
        directory: where to.
        overwrite: replace what is there.
        tokenizer: saved beside the model.
        about: further rows of the card.
        files: further text files, name → content.

    Raises:
        InputError: the directory is not empty.
    """
    with atomic_directory(directory, overwrite=overwrite) as place:
        if is_pretrained(model):
            model.save_pretrained(place)  # type: ignore[operator]
        else:
            from safetensors.torch import save_model

            specs = {n: m.spec for n, m in model.named_modules() if isinstance(m, CompressedLayer)}
            save_model(model, str(place / WEIGHTS))
            (place / SPECS).write_text(json.dumps({"modules": specs}, indent=1) + "\n", "utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(place)
        found = report(model)
        if found is not None:
            write_report(found, place, about)
        for name, text in (files or {}).items():
            (place / name).write_text(text, "utf-8")


def write_report(found: Report, place: Path, about: Mapping[str, str] | None = None) -> None:
    """The card (README.md) and the table of layers."""
    (place / "README.md").write_text(found.card(about), "utf-8")
    with (place / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(found.rows[0]._fields)
        writer.writerows(map(cells, found.rows))


def load(model: nn.Module, directory: str | os.PathLike[str]) -> nn.Module:
    """Load what `save` wrote of a plain module into a dense one of the same class; transformers models load themselves.

    Args:
        model: the dense skeleton, changed in place.
        directory: where from.

    Raises:
        InputError: files that are missing, or tensors that do not fit; the model is as it was.
    """
    place = Path(directory)
    try:
        specs = dict(json.loads((place / SPECS).read_text("utf-8"))["modules"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{place} holds no compressed model that can be read: {error}") from None
    tensors = dict(read_finite(place / WEIGHTS, str(place)))
    names = dict(model.named_modules())
    layers: dict[str, CompressedLayer] = {}
    for name, spec in specs.items():
        if not isinstance(getattr(names.get(name), "weight", None), Tensor):
            raise InputError(
                f"{place} factorises layer {name}, which {type(model).__name__} has not: give its own class"
            )
        weight: Any = names[name].weight
        layers[name] = build_layer(spec, weight.device, weight.dtype)
        for key, value in layers[name].state_dict().items():
            found = tensors.get(f"{name}.{key}")
            if found is None or found.shape != value.shape:
                shape = None if found is None else tuple(found.shape)
                raise InputError(
                    f"{name}.{key} has shape {shape}, {SPECS} says {tuple(value.shape)}: they are not of one model"
                )
    for name, layer in layers.items():
        install(model, name, layer)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    shared = _shared_names(model)
    lacking = [name for name in missing if name not in shared]
    if lacking or unexpected:
        for name in layers:
            install(model, name, names[name])
        raise InputError(f"{place} does not fit {type(model).__name__}: {(lacking or unexpected)[0]}")
    return model


def _shared_names(model: nn.Module) -> set[str]:
    """All names but the first of each parameter that has several: safetensors holds it once."""
    first: dict[int, str] = {}
    return {
        name
        for name, tensor in model.named_parameters(remove_duplicate=False)
        if first.setdefault(id(tensor), name) != name
    }


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Make a compressed model dense again, in place: the same outputs from layers that need no eckart.

    Factors are multiplied out. Sliced attention and MLPs are padded with zeros to the size their stock class has.

    Args:
        model: compressed, of transformers or a plain module.

    Raises:
        InputError: it is not compressed; a layer without a dense form; a bias that the stock class cannot hold.
    """
    if getattr(getattr(model, "config", None), "compressed_layers", None):
        from eckart.compression._padding import pad

        return pad(model)
    if not any(isinstance(module, CompressedLayer) for module in model.modules()):
        raise InputError(f"{type(model).__name__} has no compressed layer: nothing to merge")
    make_dense(model)
    if is_pretrained(model):
        carrier: Any = model
        carrier.hf_quantizer.remove_quantization_config(model)
    return model


@torch.no_grad()
def make_dense(model: nn.Module) -> None:
    """Put ordinary layers in the place of compressed ones, of the kind that the stock class has.

    Raises:
        InputError: as `merge`; nothing was changed.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, CompressedLayer)}
    dense = {name: layer.dense() for name, layer in layers.items()}
    if is_pretrained(model):
        with torch.device("meta"):
            maker: Any = type(model)
            stock = maker(model.config)
        _check_biases(model, stock, dense)
        dense = {name: _transposed_as(stock.get_submodule(name), layer) for name, layer in dense.items()}
    for name, layer in dense.items():
        install(model, name, layer)


def _transposed_as(stock: nn.Module, layer: nn.Module) -> nn.Module:
    """A linear layer as transformers' Conv1D, which stores its weight as (in, out), where the stock class has one."""
    if not is_transposed(stock):
        return layer
    from transformers.pytorch_utils import Conv1D

    assert isinstance(layer, nn.Linear)
    found = Conv1D(layer.out_features, layer.in_features).to(layer.weight)
    found.weight.copy_(layer.weight.T)
    bias: Tensor | None = layer.bias
    found.bias.copy_(bias if bias is not None else torch.zeros_like(found.bias))
    return found


BIAS_SWITCHES = {"self_attn": "attention_bias", "mlp": "mlp_bias"}


def check_mergeable(chosen: Compressor, outline: Outline) -> None:
    """Refuse to compress what could not be made dense again afterwards; nothing has been changed yet.

    Raises:
        InputError: as `merge` would.
    """
    act = getattr(chosen, "act", None)
    if act is not None:
        raise InputError(
            f"act is {act!r}: a layer with it between its factors has no dense form, leave act out to merge"
        )
    if chosen.adds_bias and is_pretrained(outline.model):
        for name, layer in outline.layers.items():
            if type(layer) is nn.Linear and getattr(layer, "bias", None) is None:
                _bias_switch(outline.model, name)


def _bias_switch(model: Any, name: str) -> str:
    """The field of a config that gives a layer a bias.

    Raises:
        InputError: it has none.
    """
    switch = BIAS_SWITCHES.get(name.rpartition(".")[0].rpartition(".")[2])
    if switch is None or not hasattr(model.config, switch):
        raise InputError(
            f"layer {name} has a bias that {type(model).__name__} cannot hold: to merge, compress by a method that "
            "adds none, such as whitened-svd or lord with center=False"
        )
    return switch


def _check_biases(model: nn.Module, stock: nn.Module, dense: Mapping[str, nn.Module]) -> None:
    """Make room for biases that the compressed model has and its stock class has not, where its config can.

    Raises:
        InputError: the config has no switch for them.
    """
    config: Any = model.config
    for name, layer in dense.items():
        bias = getattr(layer, "bias", None)
        if bias is None or getattr(stock.get_submodule(name), "bias", None) is not None:
            continue
        part = name.rpartition(".")[0].rpartition(".")[2]
        setattr(config, _bias_switch(model, name), True)
        for sibling, other in model.named_modules():
            plain = isinstance(other, nn.Linear) and f".{part}." in f".{sibling}."
            if plain and sibling not in dense and other.bias is None and not _inside(sibling, dense):
                weight: Any = other.weight
                other.bias = nn.Parameter(weight.new_zeros(len(weight)))
    for name, layer in dense.items():
        part = name.rpartition(".")[0].rpartition(".")[2]
        switch = BIAS_SWITCHES.get(part)
        if switch and getattr(config, switch, False) and getattr(layer, "bias", None) is None:
            weight = layer.weight
            layer.bias = nn.Parameter(weight.new_zeros(len(weight)))


def _inside(name: str, layers: Mapping[str, nn.Module]) -> bool:
    return any(name.startswith(f"{layer}.") for layer in layers)
