"""ALLoRA: every target and mode under SGD and Adam, on a LoRA of scaling 1."""

from __future__ import annotations

import re
from typing import Any

import torch

from eckart.adapters import LoRAConfig
from eckart.training import ALLoRA

INPUTS = ["weight", "bias", "lora_A_init", "lora_B_init", "X", "Y"]


def replay(case: Any) -> dict[str, Any]:
    runs = {re.sub(r"_(lora_[AB]|loss|scale)$", "", name) for name in case.arrays} - {"lora_A_init"}
    outputs: dict[str, Any] = {}
    for run in sorted(runs):
        if found := re.fullmatch(r"(\w+)_(sgd|adam)_(grad|update)", run):
            outputs |= {f"{run}_{key}": value for key, value in _train(case, *found.groups()).items()}
    return outputs


def _train(case: Any, target: str, optimiser: str, mode: str) -> dict[str, Any]:
    given, hyper = case.inputs, case.hyper
    config = LoRAConfig(r=hyper["r"], lora_alpha=hyper["r"], target_modules=["layer"])
    host = torch.nn.ModuleDict({"layer": case.linear(given["weight"], given["bias"])})
    start = {f"lora_{letter}": given[f"lora_{letter}_init"] for letter in "AB"}
    model = case.adapt(host, config, {"layer": start})
    layer, adapter = case.layer(model, "layer"), case.adapter(model, "layer")
    trained = [adapter.lora_A, adapter.lora_B]
    if optimiser == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(trained, hyper["lr"]["sgd"])
    else:
        adam = hyper["adam"]
        optimizer = torch.optim.Adam(trained, hyper["lr"]["adam"], tuple(adam["betas"]), adam["eps"])
    rule = ALLoRA(eta=hyper["eta"], target=target, mode=mode).attach(model, optimizer)
    losses, scales = [], []
    for x, y in zip(given["X"], given["Y"], strict=True):
        scales.append(rule.coefficients(adapter))
        loss = (layer(x) - y).square().mean()
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {
        "lora_A": adapter.lora_A,
        "lora_B": adapter.lora_B,
        "loss": torch.stack(losses),
        "scale": torch.stack(scales),
    }
