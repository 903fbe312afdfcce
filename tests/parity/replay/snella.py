"""SNELLA: the branch of one layer on a weight of zeros, and the allocation among several layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from eckart.adapters import SNELLAConfig
from eckart.linalg.kernel import threshold
from eckart.training import get_rule

INPUTS = (
    "in_qs",
    "out_qs",
    "coeff",
    "x",
    "g",
    "alpha",
    "beta",
    "gamma",
    r"alloc_(in|out)_qs_\d+",
    r"alloc_grads_\w+",
)
TOLERANCE = {r"alloc_.*": "rtol_alloc"}


def replay(case: Any) -> dict[str, Any]:
    return one_layer(case) | allocation(case)


def one_layer(case: Any) -> dict[str, Any]:
    given, hyper = case.inputs, case.hyper["layer"]
    coeff = given["coeff"].tolist()
    config = SNELLAConfig(r=hyper["r"], sparsity=hyper["sparsity"], coeff=coeff, target_modules=["layer"])
    host = nn.ModuleDict(
        {"layer": case.linear(given["x"].new_zeros(hyper["out_features"], hyper["in_features"]))}
    )
    names = ("in_qs", "out_qs", "alpha", "beta", "gamma")
    state = {name: given[name] for name in names}
    state["sparsity"] = torch.tensor([hyper["sparsity"]], dtype=torch.float64)
    model = case.adapt(host, config, {"layer": state})
    adapter, x = case.adapter(model, "layer"), given["x"].clone().requires_grad_()
    y = case.layer(model, "layer")(x)
    y.backward(given["g"])
    kernel = adapter.kernel()
    outputs = {"y": y, "kernel": kernel, "delta_w": adapter.delta_weight(), "grad_x": x.grad}
    outputs["threshold"] = threshold(kernel.detach().abs(), hyper["sparsity"], "square")
    return outputs | {f"grad_{name}": getattr(adapter, name).grad for name in names}


def allocation(case: Any) -> dict[str, Any]:
    """A gradient step of length zero, with the prescribed gradients, is a step of the rule alone."""
    given, hyper = case.inputs, case.hyper["allocator"]
    sizes, spe = hyper["shapes_in_out"], hyper["steps_per_epoch"]
    names = [f"layer{i}" for i in range(len(sizes))]
    host = nn.ModuleDict({name: nn.Linear(*size) for name, size in zip(names, sizes, strict=True)})
    config = SNELLAConfig(r=hyper["r"], sparsity=hyper["init_sparsity"], target_modules=names)
    factors = {
        name: {f"{side}_qs": given[f"alloc_{side}_qs_{i}"] for side in ("in", "out")}
        for i, name in enumerate(names)
    }
    model = case.adapt(host, config, factors)
    adapters = [case.adapter(model, name) for name in names]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    rule = get_rule("snella-allocation")(
        target_sparsity=hyper["target_sparsity"],
        every=spe,
        initial_warmup=hyper["init_warmup"],
        final_warmup=hyper["final_warmup"],
        interval=hyper["mask_interval"],
        beta1=hyper["beta1"],
        beta2=hyper["beta2"],
    ).attach(model, optimizer, steps=spe * hyper["total_epochs"])
    volumes, flags, sparsities, scores = [], [], [], []
    for epoch in range(hyper["total_epochs"]):
        volumes.append(rule.volume(epoch))
        flags.append(rule.reallocates(epoch))
        sparsities.append([adapter.sparsity for adapter in adapters])
        scores.append([float("nan")] * len(names) if rule.scores is None else rule.scores.tolist())
        for step in range(epoch * spe, (epoch + 1) * spe):
            for i, adapter in enumerate(adapters):
                adapter.in_qs.grad = given[f"alloc_grads_in_{i}"][step].clone()
                adapter.out_qs.grad = given[f"alloc_grads_out_{i}"][step].clone()
            optimizer.step()
    outputs = {
        "alloc_volumes": torch.tensor(volumes),
        "alloc_mask_flags": torch.tensor(flags),
        "alloc_sparsities": torch.tensor(sparsities, dtype=torch.float64),
        "alloc_scores": torch.tensor(scores, dtype=torch.float64),
    }
    for i, name in enumerate(names):
        for side in ("in", "out"):
            outputs[f"alloc_ipt_{side}_{i}"] = rule.statistics[f"{name}.{side}_qs.importance"]
            outputs[f"alloc_unc_{side}_{i}"] = rule.statistics[f"{name}.{side}_qs.uncertainty"]
    return outputs
