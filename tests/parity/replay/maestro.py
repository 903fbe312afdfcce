"""Maestro's layers at every rank, the lasso and its gradient through the rule, shrinking, a convolution, a training."""

import torch
from torch import nn

from eckart.layers import MaestroConv2d, MaestroLinear, OrderedDropout

INPUTS = [
    "weight",
    "bias",
    "(in|out)_network_weight",
    "x",
    "g",
    "ceil_rank",
    "sampled_rank",
    "threshold",
    "conv_(weight|bias|x|rank)",
    "svd_(C|in0|out0|ranks)",
]
UP_TO_SIGN = {"conv_u": 0, "conv_v": 1}


def replay(case):
    return {**_linear(case), **_convolution(case), **_training(case)}


def _layer(first, second, bias=None):
    layer = MaestroLinear(
        first.shape[1], len(second), bias is not None, r=len(first), dtype=first.dtype
    ).train()
    state = {"in_network.weight": first, "out_network.weight": second, "low_rank": layer.low_rank}
    layer.load_state_dict(state if bias is None else state | {"out_network.bias": bias})
    return layer


def _linear(case):
    given, lam = case.inputs, case.hyper["gp_lambda"]
    start = MaestroLinear.from_linear(case.linear(given["weight"], given.get("bias")))
    torch.testing.assert_close(start.dense_weight(), given["weight"], rtol=1e-10, atol=1e-12)
    layer = _layer(given["in_network_weight"], given["out_network_weight"], given.get("bias"))
    x = given["x"].clone().requires_grad_()
    outputs = {
        "y_all": torch.stack([layer.cut(int(r))(given["x"]) for r in given["ceil_rank"]]),
        "y_full": layer(given["x"]),
    }
    for name, hierarchical in (("plain", False), ("hier", True)):
        outputs[f"group_lasso_{name}"] = layer.group_lasso(hierarchical)
        outputs[f"importance_{name}"] = layer.importance(hierarchical)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    rule = OrderedDropout(lam, float(given["threshold"]), shrink_every=0).attach(layer, optimizer)
    layer.use(int(given["sampled_rank"]))
    loss = (layer(x) * given["g"]).sum()
    outputs["loss"] = (loss + lam * rule.penalty()).detach()
    loss.backward()
    optimizer.step()  # adds the gradient of the lasso; the rate is zero
    outputs |= {
        "grad_in_network": layer.in_network.weight.grad,
        "grad_out_network": layer.out_network.weight.grad,
        "grad_x": x.grad,
    }
    if layer.bias is not None:
        outputs["grad_bias"] = layer.bias.grad
    rule.shrink()
    rule.detach()
    small = layer.cut(layer.rank)
    torch.testing.assert_close(small(given["x"]), layer(given["x"]), rtol=1e-10, atol=1e-12)
    return outputs | {
        "low_rank_mask": layer.low_rank,
        "rank_after": layer.rank,
        "y_after_shrink": layer(given["x"]),
        "W_full_after": layer.dense_weight(),
        "keep_factored": isinstance(layer.cheapest(), MaestroLinear),
    }


def _convolution(case):
    given, options = case.inputs, {k: case.hyper["conv"][k] for k in ("stride", "padding")}
    layer = MaestroConv2d.from_module(case.conv(given["conv_weight"], given.get("conv_bias"), **options))
    return {
        "conv_u": layer.conv_u.weight,
        "conv_v": layer.conv_v.weight,
        "conv_y_full": layer(given["conv_x"]),
        "conv_y_half": layer.cut(int(given["conv_rank"]))(given["conv_x"]),
        "conv_group_lasso_hier": layer.group_lasso(),
        "conv_importance_hier": layer.importance(),
    }


def _training(case):
    given, hyper = case.inputs, case.hyper["svd"]
    layer = _layer(given["svd_in0"], given["svd_out0"])
    optimizer = torch.optim.SGD(layer.parameters(), lr=hyper["lr"])
    identity = torch.eye(len(given["svd_C"]), dtype=given["svd_C"].dtype)
    for rank in given["svd_ranks"].tolist():
        layer.use(rank)
        optimizer.zero_grad()
        nn.functional.mse_loss(layer(identity), given["svd_C"]).backward()
        optimizer.step()
    return {
        "svd_in_final": layer.in_network.weight,
        "svd_out_final": layer.out_network.weight,
        "svd_importance_final": layer.importance(hierarchical=False),
        "svd_singular_values": torch.linalg.svdvals(given["svd_C"]),
    }
