"""LoRA-GGPO with the case's noise, its third-party form at the start, and LoRA-MGPO with momenta of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eckart.adapters import LoRAConfig
from eckart.training import LoRAGGPO, LoRAMGPO, Rule

INPUTS = ["weight", "bias", "lora_[AB]_init", "X", "Y", "Z", "kohya_noise"]


def replay(case: Any) -> dict[str, Any]:
    return _ggpo(case) | _kohya(case) | _mgpo(case)


class Given(LoRAGGPO):
    """Its noise is given."""

    def normal(self, layer: str, like: Tensor) -> Tensor:
        return self.draws[self.step].clone()


def _model(case: Any, rule: Rule) -> tuple[Any, Any, Any, Any]:
    given, hyper = case.inputs, case.hyper
    config = LoRAConfig(r=hyper["r"], lora_alpha=hyper["lora_alpha"], target_modules=["layer"])
    host = torch.nn.ModuleDict({"layer": case.linear(given["weight"], given["bias"])})
    start = {f"lora_{letter}": given[f"lora_{letter}_init"] for letter in "AB"}
    model = case.adapt(host, config, {"layer": start}).train()
    layer, adapter = case.layer(model, "layer"), case.adapter(model, "layer")
    optimizer = torch.optim.SGD([adapter.lora_A, adapter.lora_B], hyper["lr"])
    return layer, adapter, optimizer, rule.attach(model, optimizer)


def _ggpo(case: Any) -> dict[str, Any]:
    rule = Given(sigma=case.hyper["sigma"], beta=case.hyper["beta"])
    layer, adapter, optimizer, rule = _model(case, rule)
    rule.draws = case.inputs["Z"]
    [noise] = rule.noises.values()
    rows: dict[str, list[Tensor]] = {}

    def note(**values: Tensor) -> None:
        for name, value in values.items():
            rows.setdefault(name, []).append(value.detach().clone())

    for x, target in zip(case.inputs["X"], case.inputs["Y"], strict=True):
        note(weight_row_norm_sq=noise.weight_squares(), noise_std=noise.std())
        y = layer(x)
        loss = (y - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        note(y=y, loss=loss, grad_A=adapter.lora_A.grad, grad_B=adapter.lora_B.grad)
        optimizer.step()
        note(grad_row_norm_sq=noise.gradient_squares)
    ends = {f"lora_{letter}_final": getattr(adapter, f"lora_{letter}") for letter in "AB"}
    return {name: torch.stack(values) for name, values in rows.items()} | ends


def _kohya(case: Any) -> dict[str, Any]:
    rule = Given(sigma=case.hyper["sigma"], beta=case.hyper["beta"], form="kohya")
    layer, _, optimizer, rule = _model(case, rule)
    rule.draws = [case.inputs["kohya_noise"]] * 2
    [noise] = rule.noises.values()
    x, target = case.inputs["X"][0], case.inputs["Y"][0]
    (layer(x) - target).square().mean().backward()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()  # the weights stay at the start, the gradients are known
    gamma, std = noise.gradient_squares.sqrt(), noise.std()
    combined = (std * len(std) ** 0.5 - rule.beta * gamma**2) / rule.sigma
    return {
        "kohya_y": layer(x),
        "kohya_grad_row_norm": gamma,
        "kohya_combined_row_norm": combined,
        "kohya_org_norm_estimate": noise.mean_row_norm(),
    }


def _mgpo(case: Any) -> dict[str, Any]:
    hyper = case.hyper["mgpo"]
    options = {"rho": hyper["rho"], "beta": hyper["beta"], "clamp": hyper["scale_clamp"], "mu": hyper["mu"]}
    layer, adapter, optimizer, rule = _model(case, LoRAMGPO(**options))
    [shift] = rule.shifts.values()
    losses, norms, shifts = [], [], []
    for x, target in zip(case.inputs["X"], case.inputs["Y"], strict=True):
        shifts.append(shift.delta_weight())
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        norms.append(shift.norm)
    return {
        "mgpo_eps": torch.stack(shifts[-2:]),
        "mgpo_loss": torch.stack(losses),
        "mgpo_grad_ema": torch.stack(norms),
        **{f"mgpo_lora_{letter}_final": getattr(adapter, f"lora_{letter}") for letter in "AB"},
    }
