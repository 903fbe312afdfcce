"""Break-for-Make: one adapter on a weight of zeros, the fusion of two, and the second stage of the fused one.

The authors' optimiser decays the frozen halves too, and every half after its step instead of before it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eckart.adapters import BreakForMakeConfig
from eckart.adapters.break_for_make import fuse, precondition

INPUTS = ("down_init", "up_init", "down", "up", "x", "g", "t", r"(content|style)_(down|up)")


def replay(case: Any) -> dict[str, Any]:
    given, hyper = case.inputs, case.hyper
    config = BreakForMakeConfig(
        r=hyper["rank"], frozen_fraction=hyper["frozen_fraction"], save_basis=True, target_modules=["layer"]
    )
    rows, columns = int(hyper["frozen_fraction"] * hyper["out"]), int(hyper["frozen_fraction"] * hyper["in"])

    def state(down: Tensor, up: Tensor) -> dict[str, Tensor]:
        halves = {
            "down_C": down[:, :columns],
            "down_D": down[:, columns:],
            "up_A": up[:rows],
            "up_B": up[rows:],
        }
        return {name: value.contiguous() for name, value in halves.items()}

    def adapted(down: Tensor, up: Tensor) -> Any:
        host = nn.ModuleDict({"layer": case.linear(given["x"].new_zeros(hyper["out"], hyper["in"]))})
        return case.adapt(host, config, {"layer": state(down, up)})

    def gradients(adapter: Any) -> tuple[Tensor, Tensor]:
        """With zeros for what does not train."""
        down, up = torch.zeros_like(given["down"]), torch.zeros_like(given["up"])
        down[:, columns:], up[rows:] = adapter.down_D.grad, adapter.up_B.grad
        return down, up

    model = adapted(given["down"], given["up"])
    adapter = case.adapter(model, "layer")
    y = case.layer(model, "layer")(given["x"])
    y.backward(given["g"])
    outputs = {"y": y, "delta_W": adapter.delta_weight()}
    outputs["grad_down"], outputs["grad_up"] = gradients(adapter)

    model = adapted(given["style_down"], given["style_up"])
    model.add_adapter("content", config)
    content = case.layer(model, "layer").eckart_adapters["content"]
    content.load_state_dict(state(given["content_down"], given["content_up"]))
    if not torch.equal(content.down_C, case.adapter(model, "layer").down_C):
        # The authors' frozen halves have drifted apart; the rule takes those of the style.
        content.down_C.copy_(case.adapter(model, "layer").down_C)
        content.up_A.copy_(case.adapter(model, "layer").up_A)
    fuse(model, "content", "default", "fused")
    fused = case.layer(model, "layer").eckart_adapters["fused"]
    outputs["fused_down"], outputs["fused_up"] = (half.detach().clone() for half in fused.halves())
    return outputs | second_stage(case, model, fused, gradients)


def second_stage(case: Any, model: Any, fused: Any, gradients: Any) -> dict[str, Any]:
    given, stage = case.inputs, case.hyper["stage2"]
    trained = [fused.down_D, fused.up_B]
    optimizer = torch.optim.Adam(trained, lr=stage["lr"], betas=stage["betas"], eps=stage["eps"])
    outputs: dict[str, Any] = {}
    for step in range(stage["steps"]):
        optimizer.zero_grad()
        loss = (case.layer(model, "layer")(given["x"]) - given["t"]).square().sum() / 2
        loss.backward()
        outputs[f"s2_loss_{step}"] = loss
        if step == 0:
            outputs["s2_grad_down"], outputs["s2_grad_up"] = gradients(fused)
        precondition(model, stage["reg"])
        optimizer.step()
        with torch.no_grad():
            for tensor in (*trained, fused.down_C, fused.up_A):
                tensor.mul_(1 - stage["lr"] * stage["weight_decay"])
        outputs[f"s2_down_{step + 1}"], outputs[f"s2_up_{step + 1}"] = (
            half.detach().clone() for half in fused.halves()
        )
    return outputs
