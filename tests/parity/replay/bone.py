"""Bone: each prefix of the case is a layer of its own, in the variant the prefix begins with."""

import torch

from eckart.adapters import BoneConfig

INPUTS = [r".*_(?<!grad_)(weight|bias|miss_block|x|g)"]
VARIANTS = {"bat_row": "bat-row", "bat": "bat", "mini": "mini", "shard_out": "shard_out", "miss": "miss"}


def replay(case):
    outputs = {}
    for prefix, hyper in case.hyper.items():
        variant = next(name for start, name in VARIANTS.items() if prefix.startswith(start))
        weight, bias, block, x, g = (
            case.inputs[f"{prefix}_{name}"] for name in ("weight", "bias", "miss_block", "x", "g")
        )
        config = BoneConfig(
            r=hyper["r"], variant=variant, mini_r=hyper.get("mini_r"), target_modules=["layer"]
        )
        host = torch.nn.ModuleDict({"layer": case.linear(weight, bias)})
        model = case.adapt(host, config, {"layer": {"miss_block": block}})
        layer, x = case.layer(model, "layer"), x.requires_grad_()
        y = layer(x)
        y.backward(g)
        found = {
            "y": y,
            "W_eff": weight + layer.get_delta_weight("default"),
            "grad_miss_block": case.adapter(model, "layer").miss_block.grad,
            "grad_x": x.grad,
        }
        outputs |= {f"{prefix}_{name}": value for name, value in found.items()}
    return outputs
