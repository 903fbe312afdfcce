"""The arms that are compared: our adapters and PEFT's at the same rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
from torch import nn

from eckart.adapters import make_config

Wrap = Callable[[nn.Module, Any], nn.Module]


def ours(slug: str, **options: Any) -> Wrap:
    """An adapter of this library on a model's targets."""

    def wrap(model: nn.Module, targets: Any) -> nn.Module:
        return peft.get_peft_model(model, make_config(slug, target_modules=targets, **options))

    return wrap


def theirs(config: type[peft.PeftConfig], **options: Any) -> Wrap:
    """An adapter of PEFT's own."""

    def wrap(model: nn.Module, targets: Any) -> nn.Module:
        return peft.get_peft_model(model, config(target_modules=targets, **options))

    return wrap


ARMS: dict[str, Wrap | None] = {
    "frozen floor": None,
    "lora": ours("lora", r=8),
    "peft lora": theirs(peft.LoraConfig, r=8),
    "bone": ours("bone", r=16),
    "peft miss": theirs(peft.MissConfig, r=16),
    "bat": ours("bone", variant="bat", r=16),
    "peft bat": theirs(peft.MissConfig, r=16, init_weights="bat"),
    "randlora": ours("randlora", r=32),
    "peft randlora": theirs(peft.RandLoraConfig, r=32),
    "svfit full": ours("svfit", r=384),
    "snell": ours("snell", r=8),
    "snella": ours("snella", r=8),
    "sara": ours("sara"),
    "all weights": lambda model, _: model.requires_grad_(True),
}
PAIRS = {"lora": "peft lora", "bone": "peft miss", "bat": "peft bat", "randlora": "peft randlora"}
