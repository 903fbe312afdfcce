"""The one place where PEFT learns of our methods: its type enum, and its tables of configs, tuners and prefixes."""

from __future__ import annotations

from peft import PeftType
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_MIXED_MODEL_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from eckart.adapters._census import PREFIX
from eckart.adapters._method import MethodConfig
from eckart.adapters._peft import EckartTuner
from eckart.adapters._prompt_tuner import PromptTuner
from eckart.adapters._prompts import PromptConfig


def register_peft_type(config: type[MethodConfig]) -> None:
    """Enter a config class into PEFT: a member of its type enum, and its tables of configs, tuners and prefixes."""
    name = f"{PREFIX}{config.slug}".replace("-", "_").upper()
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        type.__setattr__(PeftType, name, member)
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
    member = PeftType[name]
    config.peft_kind = member
    PEFT_TYPE_TO_CONFIG_MAPPING[member] = config
    PEFT_TYPE_TO_PREFIX_MAPPING[member] = PREFIX
    if issubclass(config, PromptConfig):
        PEFT_TYPE_TO_TUNER_MAPPING[member] = PromptTuner
    else:
        PEFT_TYPE_TO_TUNER_MAPPING[member] = PEFT_TYPE_TO_MIXED_MODEL_MAPPING[member] = EckartTuner
