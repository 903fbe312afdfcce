"""FLoRA: a linear layer and convolutions, each an entry of the hyper-parameters."""

from __future__ import annotations

from typing import Any

from torch import nn

from eckart.adapters import FLoRATuckerConfig

INPUTS = (r"(linear|conv\dd)_(weight|bias|param_\w|x|g)",)


def replay(case: Any) -> dict[str, Any]:
    outputs = {}
    for prefix, hyper in case.hyper.items():
        given = {
            key.removeprefix(f"{prefix}_"): value
            for key, value in case.inputs.items()
            if key.startswith(prefix)
        }
        config = FLoRATuckerConfig(r=hyper["r"], scale=hyper["scale"], target_modules=["layer"])
        if prefix == "linear":
            layer = case.linear(given["weight"], given.get("bias"))
        else:
            options = {k: hyper[k] for k in ("stride", "padding", "dilation", "groups") if k in hyper}
            layer = case.conv(given["weight"], given.get("bias"), **options)
        state = {key: value for key, value in given.items() if key.startswith("param_")}
        model = case.adapt(nn.ModuleDict({"layer": layer}), config, {"layer": state})
        x, adapter = given["x"].requires_grad_(), case.adapter(model, "layer")
        y = case.layer(model, "layer")(x)
        (y * given["g"]).sum().backward()
        outputs |= {f"{prefix}_y": y, f"{prefix}_grad_x": x.grad}
        outputs |= {f"{prefix}_grad_{name}": getattr(adapter, name).grad for name in state}
        outputs[f"{prefix}_W_eff"] = model.merge_and_unload()["layer"].weight
    return outputs
