"""How transformers saves and loads a model with structured layers: a quantisation method "eckart-structured".

Importing this module registers it. config.json holds, under ``quantization_config``, the spec of every layer that is
not the stock one; the skeleton gets these layers before the weights are read.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from eckart.layers._convert import structured_layers, to_dense
from eckart.layers._replacing import rebuild
from eckart.layers._structured import build_layer

NAME = "eckart-structured"


@register_quantization_config(NAME)
class StructuredConfig(QuantizationConfigMixin):
    """The layers that take the place of stock ones.

    Args:
        modules: name → spec, as `StructuredLinear.spec` gives it.
    """

    def __init__(self, modules: dict[str, dict[str, Any]] | None = None, **_: Any) -> None:
        self.quant_method = NAME  # type: ignore[assignment]
        self.modules = modules or {}


@register_quantizer(NAME)
class StructuredQuantizer(HfQuantizer):
    """Puts the layers of a `StructuredConfig` into a skeleton; they train like any others."""

    quantization_config: StructuredConfig

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        rebuild(model, self.quantization_config.modules, build_layer, kwargs.get("checkpoint_files") or ())
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        for layer in structured_layers(model).values():
            layer.restore()
        return model

    def _dequantize(self, model: nn.Module, dtype: Any = None) -> nn.Module:
        dense = to_dense(model)
        return dense if dtype is None else dense.to(dtype)

    def is_serializable(self) -> bool:
        """Its layers are in the state dict as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """They train."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """They train."""
        return True
