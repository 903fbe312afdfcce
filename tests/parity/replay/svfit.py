"""SVFit: everything follows from the weight and the trained values."""

import torch

from eckart.adapters import SVFitConfig

INPUTS = ["weight", "bias", "svfit_s", "x", "g"]
UP_TO_SIGN = {"svfit_U": 1, "svfit_Vh": 0}


def replay(case):
    def adapt(**options):
        config = SVFitConfig(target_modules=["layer"], **options)
        model = case.adapt(torch.nn.ModuleDict({"layer": case.linear(weight, bias)}), config, {})
        return case.layer(model, "layer"), case.adapter(model, "layer")

    def moved_to(values):
        with torch.no_grad():
            adapter.svfit_s.copy_(values - adapter.svfit_s0)
        return weight + layer.get_delta_weight("default")

    weight, bias, x = case.inputs["weight"], case.inputs["bias"], case.inputs["x"].requires_grad_()
    layer, adapter = adapt(r=case.hyper["r"])
    residual = moved_to(torch.zeros_like(adapter.svfit_s0))
    w_eff = moved_to(case.inputs["svfit_s"])
    y = layer(x)
    y.backward(case.inputs["g"])
    return {
        "S_full": adapt(r=min(weight.shape))[1].svfit_s0,
        "svfit_U": adapter.svfit_U,
        "svfit_Vh": adapter.svfit_Vh,
        "svfit_s_init": adapter.svfit_s0,
        "residual": residual,
        "W_eff": w_eff,
        "y": y,
        "grad_svfit_s": adapter.svfit_s.grad,
        "grad_x": x.grad,
        "rank_for_energy_99": [
            len(adapt(energy=0.99, energy_norm=norm)[1].svfit_s) for norm in ("squared", "nuclear")
        ],
    }
