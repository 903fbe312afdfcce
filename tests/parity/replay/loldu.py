"""LoLDU: everything follows from the weight and the trained diagonal."""

import torch

from eckart.adapters import LoLDUConfig
from eckart.linalg.lu import row_order

INPUTS = ["weight", "bias", "vector_z", "x", "g"]


def replay(case):
    weight, hyper = case.inputs["weight"], case.hyper
    config = LoLDUConfig(
        r=hyper["rank"],
        lora_alpha=hyper["lora_alpha"],
        init_method=hyper["init_method"],
        train_scaling=True,
        target_modules=["layer"],
    )
    linear = case.linear(weight, case.inputs["bias"])
    model = case.adapt(torch.nn.ModuleDict({"layer": linear}), config, {})
    layer, adapter = case.layer(model, "layer"), case.adapter(model, "layer")

    def moved_to(values):
        with torch.no_grad():
            adapter.vector_z.copy_(values - adapter.vector_z0)
        return weight + layer.get_delta_weight("default")

    residual = moved_to(torch.zeros_like(adapter.vector_z0))
    w_eff = moved_to(case.inputs["vector_z"])
    y = layer(case.inputs["x"])
    y.backward(case.inputs["g"])
    order = row_order(weight)
    return {
        "P": torch.eye(len(order))[:, torch.argsort(order)].t(),
        "lora_B": adapter.lora_B[order],
        "lora_A": adapter.lora_A,
        "vector_z_init": adapter.vector_z0,
        "scaling_factor": adapter.scaling_factor[0],
        "residual": residual,
        "W_eff": w_eff,
        "y": y,
        "grad_vector_z": adapter.vector_z.grad,
        "grad_scaling_factor": adapter.scaling_factor.grad[0],
    }
