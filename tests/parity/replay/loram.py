"""LoRAM: the pruned weights, the recovered factors, and an MLP with each of the two adapters merged."""

import re

import torch
from torch import nn

from eckart.compression import loram

INPUTS = [
    r"(mlp|self_attn)\.\w+_proj\.(weight|bias)",
    r"trained\..*",
    "pruned_idx_(mlp|kv)",
    "x",
]
BLOCK = "model.layers.0"


def replay(case):
    hyper, given = case.hyper, case.inputs
    groups = hyper["num_heads"] // hyper["num_key_value_heads"]
    pruning = loram.Pruning(
        {BLOCK: loram.Indices(given["pruned_idx_mlp"], given["pruned_idx_kv"])},
        hyper["intermediate"],
        hyper["num_key_value_heads"] * hyper["head_dim"],
        hyper["head_dim"],
        groups,
    )
    large, small = _block(case), _block(case)
    loram.prune_model(small, pruning)
    outputs = {
        f"{name}.pruned_{kind}": value
        for layer in ("mlp", "self_attn")
        for key, value in small.get_submodule(f"{BLOCK}.{layer}").state_dict().items()
        for name, kind in [(f"{layer}.{key.rpartition('.')[0]}", key.rpartition(".")[2])]
    }
    trained = {
        f"base_model.model.{BLOCK}.{n.removeprefix('trained.')}.weight": v
        for n, v in given.items()
        if n.startswith("trained.")
    }
    recovered = loram.recover(trained, pruning)
    again = loram.restrict(recovered, pruning)
    assert all(torch.equal(again[name], trained[name]) for name in trained)
    outputs |= {
        re.sub(rf".*{re.escape(BLOCK)}\.(.*)\.weight", r"recovered.\1", name): value
        for name, value in recovered.items()
    }
    for name, block, state in (("small", small, trained), ("large", large, recovered)):
        outputs[f"y_mlp_{name}"] = _merged_mlp(block, state, hyper, given["x"])
    return outputs


def _block(case):
    layers = {n.removesuffix(".weight"): w for n, w in case.inputs.items() if n.endswith("_proj.weight")}
    root = nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict()])})})
    block = root.get_submodule(BLOCK)
    for name, weight in layers.items():
        part, _, last = name.partition(".")
        if part not in block:
            block[part] = nn.ModuleDict()
        block[part][last] = case.linear(weight, case.inputs.get(f"{name}.bias"))
    return root


def _merged_mlp(block, state, hyper, x):
    scale = hyper["lora_alpha"] / hyper["r"]
    mlp = block.get_submodule(f"{BLOCK}.mlp")

    def project(name, h):
        key = f"base_model.model.{BLOCK}.mlp.{name}"
        delta = scale * state[f"{key}.lora_B.weight"] @ state[f"{key}.lora_A.weight"]
        layer = mlp[name]
        return nn.functional.linear(h, layer.weight + delta, layer.bias)

    return project("down_proj", nn.functional.silu(project("gate_proj", x)) * project("up_proj", x))
