"""ReLoRA's layer, its gradients, and the weight that a restart leaves."""

import torch

from eckart.layers import ReLoRALinear

INPUTS = ["weight", "lora_A", "lora_B", "bias", "x", "g"]
TRAINED = ("weight", "lora_A", "lora_B", "bias")


def replay(case):
    hyper, given = case.hyper, case.inputs
    layer = ReLoRALinear(
        hyper["in_features"],
        hyper["out_features"],
        bias=hyper["bias"],
        r=hyper["r"],
        lora_alpha=hyper["lora_alpha"],
        dtype=torch.float64,
    )
    layer.load_state_dict({name: given[name] for name in TRAINED}, strict=False)
    x = given["x"].clone().requires_grad_()
    y = layer(x)
    y.backward(given["g"])
    outputs = {f"grad_{name}": p.grad.clone() for name, p in layer.named_parameters()}
    layer.restart(1)
    again = layer(given["x"]).detach()
    torch.testing.assert_close(again, y.detach(), rtol=1e-12, atol=1e-12)
    return {"y": y.detach(), "merged": layer.weight.detach(), "grad_x": x.grad, **outputs}
