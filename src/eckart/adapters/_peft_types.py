"""The one place where PEFT learns of our methods: its type enum, and its tables of configs, tuners and prefixes."""

from __future__ import annotations

from peft import PeftType
from peft.utils import register_peft_method

from eckart.adapters._census import PREFIX
from eckart.adapters._method import MethodConfig
from eckart.adapters._peft import EckartTuner
from eckart.adapters._prompt_tuner import PromptTuner
from eckart.adapters._prompts import PromptConfig


def register_peft_type(config: type[MethodConfig]) -> None:
    """Enter a config class into PEFT: a member of its type enum, for which it has no door, and then its own tables."""
    slug = f"{PREFIX}{config.slug}".replace("-", "_")
    name = slug.upper()
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    type.__setattr__(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    config.peft_kind = member
    prompt = issubclass(config, PromptConfig)
    register_peft_method(
        name=slug,
        config_cls=config,
        model_cls=PromptTuner if prompt else EckartTuner,
        prefix=PREFIX,
        is_mixed_compatible=not prompt,
    )
