"""How transformers loads a model with factorised layers: a quantisation method of the name "eckart".

Importing this module registers it. What a checkpoint's config says under ``quantization_config`` is the spec of every
layer that is not the stock one; the skeleton gets these layers before the weights are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from eckart.compression._census import install
from eckart.compression._kinds import build_layer
from eckart.compression._layers import FactorizedLinear, Spec
from eckart.compression._layout import by_columns
from eckart.errors import InputError, first_line

NAME = "eckart"


@register_quantization_config(NAME)
class EckartConfig(QuantizationConfigMixin):
    """The layers that take the place of stock ones.

    Args:
        method: slug of the method that made them.
        modules: name → spec, as `eckart.compression` writes it.
    """

    def __init__(self, method: str = "", modules: dict[str, Spec] | None = None, **_: Any) -> None:
        self.quant_method = NAME  # type: ignore[assignment]
        self.method = method
        self.modules = modules or {}


@register_quantizer(NAME)
class EckartQuantizer(HfQuantizer):
    """Puts the layers of an `EckartConfig` into a skeleton; they train like any others."""

    quantization_config: EckartConfig

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        modules = under(self.quantization_config.modules, model)
        files = kwargs.get("checkpoint_files") or ()
        check_files(files, self.quantization_config.modules, model)
        self.from_files = bool(files)
        for name, spec in modules.items():
            dense: Any = model.get_submodule(name)
            layer = build_layer(spec, dense.weight.device, dense.weight.dtype)
            install(model, name, layer)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for layer in model.modules():
            if isinstance(layer, FactorizedLinear):
                by_columns(layer.B.weight, fresh=self.from_files)
        return model

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        from eckart.compression._saving import make_dense

        make_dense(model)
        return model.to(dtype)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True


def under(modules: dict[str, Spec], model: nn.Module) -> dict[str, Spec]:
    """The specs by their names in a model that may be the backbone of the one that was saved, or hold it.

    Raises:
        InputError: a layer that the model has not.
    """
    names = {name for name, _ in model.named_modules()}
    prefix = getattr(model, "base_model_prefix", "") + "."
    found = {}
    for name, spec in modules.items():
        options = (name, name.removeprefix(prefix), prefix + name)
        place = next((option for option in options if option in names), None)
        if place is None:
            raise InputError(
                f"the checkpoint factorises layer {name}, which {type(model).__name__} has not: load it with the class "
                "that its config.json names under architectures"
            )
        found[place] = spec
    return found


def check_files(files: Iterable[Any], modules: dict[str, Spec], model: Any) -> None:
    """Hold the factors in safetensors files against the specs, under the names in the files and under those that
    transformers gives them on loading.

    Args:
        files: of the checkpoint.
        modules: name → spec.
        model: the skeleton, which knows the renamings.

    Raises:
        InputError: a factor of another rank than its spec says, or none.
    """
    from safetensors import SafetensorError, safe_open
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [e for e in get_model_conversion_mapping(model) or [] if isinstance(e, WeightRenaming)]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        if Path(file).suffix != ".safetensors":
            continue
        try:
            with safe_open(file, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    shape = tuple(tensors.get_slice(key).get_shape())
                    shapes[key] = shapes[rename_source_key(key, renamings, [])[0]] = shape
        except SafetensorError as error:
            raise InputError(f"{file} is damaged or cut short ({first_line(error)}): copy it again") from None
    foreign = not any(key.startswith(f"{name}.") for name in modules for key in shapes)
    for name, spec in modules.items():
        if foreign or "rank" not in spec:
            continue
        expected = build_layer(spec, torch.device("meta"))
        for key, value in expected.state_dict().items():
            full = f"{name}.{key}"
            found = shapes.get(full)
            if found is None:
                raise InputError(
                    f"{full} is missing from the checkpoint: it is damaged, or its config.json is another's"
                )
            if found != tuple(value.shape):
                raise InputError(
                    f"{full} has shape {found}, its config.json says {tuple(value.shape)} (rank {spec['rank']}): they "
                    "are not of one model"
                )
