"""RandLoRA: two layers with a tanh between them, in PEFT's order; their ΔW in the paper's order too."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from eckart.adapters import RandLoRAConfig

INPUTS = (r"randlora_[AB]", "x", "cotangent", r"lin\d+\.(weight|bias|randlora_lambda|randlora_gamma)")


def replay(case: Any) -> dict[str, Any]:
    given, hyper = case.inputs, case.hyper
    names = sorted({key.partition(".")[0] for key in given if key.startswith("lin")})
    values = ("randlora_lambda", "randlora_gamma")
    state = {name: {value: given[f"{name}.{value}"] for value in values} for name in names}
    state[names[0]] |= {f"bases.{basis}": given[basis] for basis in ("randlora_A", "randlora_B")}

    def adapted(order: str) -> Any:
        model = nn.ModuleDict({n: case.linear(given[f"{n}.weight"], given[f"{n}.bias"]) for n in names})
        config = RandLoRAConfig(
            r=hyper["r"],
            randlora_alpha=hyper["randlora_alpha"],
            basis_order=order,
            save_basis=True,
            target_modules=names,
        )
        return case.adapt(model, config, state)

    model, outputs = adapted("peft"), {}
    y = given["x"]
    for name in names[:-1]:
        y = torch.tanh(case.layer(model, name)(y))
    y = case.layer(model, names[-1])(y)
    (y * given["cotangent"]).sum().backward()
    paper = adapted("paper")
    for name in names:
        adapter = case.adapter(model, name)
        outputs[f"{name}.delta_weight"] = adapter.delta_weight()
        outputs[f"{name}.delta_weight_paper_order"] = case.adapter(paper, name).delta_weight()
        outputs |= {f"{name}.grad.{value}": getattr(adapter, value).grad for value in values}
    return {**outputs, "y": y}
