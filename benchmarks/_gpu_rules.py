"""Training rules on a device for `gpu.py`: a step with each over one without, and what it waits for."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from _gpu_steps import TARGETS, Rows, llama, seconds, stepper, waits
from torch import Tensor, nn

import eckart
from eckart.training import Rule, get_rule

RULES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "allora": ("lora", {"r": 8}, {}),
    "diffora": ("lora", {"r": 8}, {}),
    "increlora": ("lora-core", {"r": 8}, {}),
    "lora-ggpo": ("lora", {"r": 8}, {}),
    "lora-mgpo": ("lora", {"r": 8}, {}),
    "sara-selection": ("sara", {}, {}),
    "sara-selection, no norm": ("sara", {}, {"lambda_rank": 0.0}),
    "snella-allocation": ("snella", {"r": 2}, {"every": 1000}),
    "triadaptlora": ("lora-core", {"r": 8, "core": "full"}, {"incre_interval": 1000}),
}
"""Of each rule the adapter it acts on, and the options of both. Ranks and weights are not shared out in the steps that
are timed. SaRA's nuclear norm decomposes a matrix in every step."""


def measure_rule(arm: str, width: int, depth: int, tokens: int, rounds: int, device: torch.device) -> Rows:
    """The adapter with the rule and without take turns."""
    slug, options, own = RULES[arm]
    models: list[nn.Module] = [
        eckart.adapt(llama(width, depth, device), slug, target_modules=TARGETS, **options).train()
        for _ in range(2)
    ]

    def rule(x: Tensor) -> Rule:
        more = {}
        if arm == "diffora":
            more["validation"] = lambda model, _: model(inputs_embeds=x).last_hidden_state.square().mean()
        return get_rule(arm.partition(",")[0])(**own, **more)

    plain, step = (
        stepper(model, width, tokens, device, given)
        for model, given in zip(models, (None, rule), strict=True)
    )
    for warmed in (plain, step, plain, step):
        warmed()
    waited = waits(step, device)
    times = [(seconds(plain, device), seconds(step, device)) for _ in range(rounds)]
    without, with_rule = (statistics.median(column) for column in zip(*times, strict=True))
    row = {"width": width, "tokens": tokens, "ms": 1e3 * with_rule, "x adapter": with_rule / without}
    return [row | {"waits for": waited}]


def rules(device: torch.device, small: bool) -> Iterator[tuple[str, Callable[[], Rows]]]:
    """Every training rule."""
    size = (64, 2, 32) if small else (2048, 4, 2048)
    for arm in RULES:
        yield arm, partial(measure_rule, arm, *size, 3 if small else 7, device)
