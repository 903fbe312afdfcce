"""How transformers loads a model with factorised layers: a quantisation method of the name "eckart".

Importing this module registers it. What a checkpoint's config says under ``quantization_config`` is the spec of every
layer that is not the stock one; the skeleton gets these layers before the weights are read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from eckart.compression._kinds import build_layer
from eckart.compression._layers import FactorizedLinear, Spec
from eckart.compression._layout import by_columns
from eckart.layers._replacing import rebuild

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
        files = kwargs.get("checkpoint_files") or ()
        rebuild(model, self.quantization_config.modules, build_layer, files)
        self.from_files = bool(files)
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
