"""What a tuner writes into a checkpoint and reads from one."""

from __future__ import annotations

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from eckart.adapters._adapted import AdaptedWeight
from eckart.adapters._checkpoint import INSIDE
from eckart.adapters._config import AdapterConfig
from eckart.adapters._rehearsal import rename_keys
from eckart.errors import InputError


class CheckpointTuner(BaseTuner):
    """The part of the tuner that knows the names of tensors in files."""

    @classmethod
    def _get_adapter_state_dict(  # type: ignore[override]
        cls,
        model: nn.Module,
        config: AdapterConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        if not isinstance(model, PeftModel) and hasattr(model, "save_lora_adapter"):
            raise InputError(
                f"diffusers reads LoRA alone and could not load what it saves of {config.slug}: wrap the model by "
                "peft.get_peft_model and save that, or write a LoRA with eckart.adapters.export_lora"
            )
        config.saved_check = {
            layer.shape.name: layer.adapter(adapter_name).base_check
            for layer in model.modules()
            if isinstance(layer, AdaptedWeight) and adapter_name in layer.eckart_adapters
        }
        return super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        base: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
        renamed = rename_keys(base, state_dict)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, renamed)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        inside = f"{INSIDE}{adapter_name}."
        if inside in key:
            return key.replace(inside, INSIDE)
        return super()._remove_adapter_name_from_key(key, adapter_name)
