"""LoRA: two factors on one layer, with both scalings."""

import torch

from eckart.adapters import LoRAConfig

INPUTS = ["weight", "bias", "lora_A", "lora_B", "x", "g"]


def replay(case):
    found = {}
    for end, use_rslora in (("", False), ("_rs", True)):
        options = {"r": case.hyper["r"], "lora_alpha": case.hyper["lora_alpha"], "use_rslora": use_rslora}
        config = LoRAConfig(target_modules=["layer"], **options)
        base = torch.nn.ModuleDict({"layer": case.linear(case.inputs["weight"], case.inputs["bias"])})
        state = {"layer": {name: case.inputs[name] for name in ("lora_A", "lora_B")}}
        model = case.adapt(base, config, state)
        layer, adapter = case.layer(model, "layer"), case.adapter(model, "layer")
        x = case.inputs["x"].clone().requires_grad_()
        y = layer(x)
        y.backward(case.inputs["g"])
        found |= {
            f"delta{end}": layer.get_delta_weight("default"),
            f"y{end}": y,
            f"grad_A{end}": adapter.lora_A.grad,
            f"grad_B{end}": adapter.lora_B.grad,
            f"grad_x{end}": x.grad,
        }
    return found
