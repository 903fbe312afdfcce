"""Intrinsic dimension: a network of two layers in one subspace, for each projection, and "said"."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from eckart.adapters import IntrinsicDimensionConfig
from eckart.linalg.hadamard import hadamard

INPUTS = (
    r"theta0",
    r"theta_d",
    "x",
    "cotangent",
    r".*\.P_raw",
    r".*\.(B|Pi|G)",
    r"said\.lambda",
    r"fwht\.in",
)
TENSORS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
OWNER = "fc1"


def replay(case: Any) -> dict[str, Any]:
    given, hyper = case.inputs, case.hyper
    sides = hyper["in"], hyper["hidden"], hyper["out"]
    shapes = [(sides[1], sides[0]), (sides[1],), (sides[2], sides[1]), (sides[2],)]
    start = [
        part.view(shape)
        for part, shape in zip(
            given["theta0"].split([torch.Size(s).numel() for s in shapes]), shapes, strict=True
        )
    ]
    outputs: dict[str, Any] = {"fwht.out_unnormalised": hadamard(given["fwht.in"])}

    def run(prefix: str, state: dict[str, Any], **options: Any) -> None:
        names = ["fc1", "fc2"]
        base = nn.ModuleDict({n: case.linear(start[2 * i], start[2 * i + 1]) for i, n in enumerate(names)})
        config = IntrinsicDimensionConfig(train_bias=True, save_basis=True, target_modules=names, **options)
        sparse = state.pop("sparse", None)
        shared = {f"subspace.{key}": value for key, value in state.items()}
        if sparse is None:
            model = case.adapt(base, config, {OWNER: shared})
        else:
            config.save_basis = False
            model = case.adapt(base, config, {OWNER: shared})
            columns, rows = sparse.t().nonzero().unbind(1)
            block = case.adapter(model, OWNER).shared["subspace"].blocks[0]
            block.fill(rows, columns, sparse[rows, columns], sparse.shape[1], False)
        layers = [case.layer(model, name) for name in names]
        y = layers[1](torch.relu(layers[0](given["x"])))
        (y * given["cotangent"]).sum().backward()
        moved = []
        for layer, name in zip(layers, names, strict=True):
            moved += [(layer.base_layer.weight + layer.get_delta_weight("default")).flatten()]
            moved += [layer.base_layer.bias + case.adapter(model, name).delta_bias()]
        subspace = case.adapter(model, OWNER).shared["subspace"]
        outputs[f"{prefix}.theta_D"], outputs[f"{prefix}.y"] = torch.cat(moved), y
        outputs[f"{prefix}.grad.theta_d"] = subspace.theta_d.grad
        if subspace.said_lambda is not None:
            outputs[f"{prefix}.grad.lambda"] = subspace.said_lambda.grad

    theta, d = {"theta_d": given["theta_d"]}, hyper["d"]

    def frozen(block: str, prefix: str) -> dict[str, Any]:
        """B only where θ meets it."""
        return {f"{block}.{name}": given[f"{prefix}.{name}"][:end] for name, end in ends.items()}

    ends = {"B": len(given["theta_d"]), "Pi": None, "G": None}
    fast = frozen("blocks.0", "fastfood")
    run("fastfood", theta | fast, d=d)
    run("dense", theta | {"blocks.0.P": given["dense.P_raw"]}, d=d, projection="dense")
    run("sparse", theta | {"sparse": given["sparse.P_raw"]}, d=d, projection="sparse")
    own: dict[str, Any] = {}
    for t, tensor in enumerate(TENSORS):
        own |= frozen(f"blocks.{t}", f"said.{tensor}")
    own["said_lambda"] = given["said.lambda"]
    run("said", theta | own, d=d + len(TENSORS), structure="said")
    return outputs
