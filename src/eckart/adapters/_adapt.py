"""`eckart.adapt`: a method, by name and budget, on a model."""

from __future__ import annotations

from typing import Any

from peft import PeftModel, get_peft_model
from torch import nn

from eckart.adapters._budget import solve_budget
from eckart.adapters._config import AdapterConfig
from eckart.adapters._prompts import PromptConfig
from eckart.adapters._registry import get_config
from eckart.errors import InputError


def make_config(method: str, **options: Any) -> AdapterConfig | PromptConfig:
    """The config of a method by name.

    Args:
        method: slug or alias, such as ``"randlora"``.
        options: fields of the config.

    Raises:
        InputError: unknown method or option (names the nearest), or a value out of range.
    """
    config = get_config(method)
    config.check_names(options, elsewhere=False)
    return config(**options)


def adapt(
    model: nn.Module,
    method: str,
    *,
    budget: str | int | None = None,
    target_modules: str | list[str] | None = "all-linear",
    adapter_name: str = "default",
    **options: Any,
) -> PeftModel:
    """Put a method's adapters on a model: ``W_eff = W₀ + ΔW(θ)``, with W₀ frozen and θ trainable.

    Args:
        model: any `torch.nn.Module`. Its target layers are wrapped in place, as `peft.get_peft_model` does.
        method: slug or alias; see `eckart.methods`.
        budget: ``"0.5%"`` of the model's parameters, ``"200k"`` parameters, ``"1MB"`` saved; sets the method's knob.
        target_modules: layer names, a regular expression, or ``"all-linear"``; left out for a prompt, which stands
            before all layers and adapts none.
        adapter_name: name of the adapter in the model.
        options: further fields of the method's config, such as ``r``, ``modules_to_save``, ``seed``.

    Returns:
        An ordinary `peft.PeftModel`.

    Raises:
        InputError: unknown method, option or layer; a budget that nothing meets; a weight with NaN. The model is
            left as it was.
    """
    if issubclass(kind := get_config(method), AdapterConfig):
        options["target_modules"] = target_modules
    elif target_modules not in (None, "all-linear"):
        raise InputError(
            f"target_modules is {target_modules!r}, but {kind.slug} adapts no layer: leave it out"
        )
    config = make_config(method, **options)
    if budget is not None:
        if options.get(config.knob) is not None:
            raise InputError(
                f"budget and {config.knob} are both given: the budget sets {config.knob}, leave one out"
            )
        config = solve_budget(model, config, budget)
    return get_peft_model(model, config, adapter_name=adapter_name)
