"""SNELL: the branch alone, on a weight of zeros; every way of sparsifying, and none ("klora")."""

import torch

from eckart.adapters import SNELLConfig
from eckart.linalg.kernel import threshold

INPUTS = ["in_qs", "out_qs", "coeff", "x", "g"]


def replay(case):
    values, hyper = case.inputs, case.hyper
    shape = values["out_qs"].shape[1], values["in_qs"].shape[1]

    def run(sparsity, how):
        config = SNELLConfig(
            r=hyper["r"],
            sparsity=sparsity,
            sparsify=how,
            norm_p=hyper["norm_p"],
            coeff=values["coeff"].tolist(),
            target_modules=["layer"],
        )
        host = torch.nn.ModuleDict({"layer": case.linear(values["x"].new_zeros(shape))})
        model = case.adapt(host, config, {"layer": {name: values[name] for name in ("in_qs", "out_qs")}})
        adapter, x = case.adapter(model, "layer"), values["x"].clone().requires_grad_()
        y = case.layer(model, "layer")(x)
        y.backward(values["g"])
        return {
            "y": y,
            "delta_w": adapter.delta_weight(),
            "grad_in_qs": adapter.in_qs.grad,
            "grad_out_qs": adapter.out_qs.grad,
            "grad_x": x.grad,
        }

    sparsity = hyper["sparsity"]
    klora = run(0.0, "square")
    sizes = klora["delta_w"].detach().abs()
    return run(sparsity, hyper["sparsify"].split()[0]) | {
        "kernel": klora["delta_w"],
        "threshold": threshold(sizes, sparsity, "square"),
        "ref_threshold_soft": threshold(sizes, sparsity, "soft"),
        "ref_delta_w_soft": run(sparsity, "soft")["delta_w"],
        "ref_delta_w_hard": run(sparsity, "hard")["delta_w"],
        **{f"klora_{name}": value for name, value in klora.items()},
    }
