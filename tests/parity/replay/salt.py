"""SALT: from the weight, its stored singular vectors (whose signs are a library's choice) and the trained numbers."""

import torch

from eckart.adapters import SALTConfig, regularization

TRAINED = ["trainable_scale_A", "trainable_shift_B", "trainable_X", "trainable_Y"]
INPUTS = ["weight", "bias", "U", "S", "Vt", *TRAINED, "x", "g"]


def replay(case):
    values, hyper = case.inputs, case.hyper
    weight = values["weight"]

    def adapt(relu):
        config = SALTConfig(
            r=hyper["rank"], r_lora=hyper["r_lora"], relu=relu, save_basis=True, target_modules=["layer"]
        )
        if weight.dim() == 2:
            layer = case.linear(weight, values.get("bias"))
        else:
            options = {
                name: hyper[name] for name in ("stride", "padding", "dilation", "groups") if name in hyper
            }
            layer = case.conv(weight, values.get("bias"), **options)
        state = {name: values[name] for name in ["U", "S", "Vt", *TRAINED] if values[name].numel()}
        return case.adapt(torch.nn.ModuleDict({"layer": layer}), config, {"layer": state})

    def gradients(model):
        found = {name: torch.zeros_like(values[name]) for name in TRAINED}
        for name, parameter in case.adapter(model, "layer").named_parameters():
            found[name] = parameter.grad.clone()
        model.zero_grad()
        return found

    def effective(model):
        return (weight + case.layer(model, "layer").get_delta_weight("default")).flatten(1)

    model = adapt(hyper["relu"])
    y = case.layer(model, "layer")(values["x"])
    y.backward(values["g"])
    outputs = {f"grad_{name}": value for name, value in gradients(model).items()}
    reg = regularization(model)
    reg.backward()
    outputs |= {f"grad_reg_{name}": value for name, value in gradients(model).items()}
    return outputs | {"y": y, "reg": reg, "W_eff": effective(model), "W_eff_no_relu": effective(adapt(False))}
