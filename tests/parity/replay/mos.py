"""MoS: one pool, every layer applied to the same input, gradients summed over the layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from eckart.adapters import MoSConfig

INPUTS = ("x", r"pool_[AB]", r"layer\d+\.(index_A|index_B|weight|cotangent)")


def replay(case: Any) -> dict[str, Any]:
    given, hyper = case.inputs, case.hyper
    config = MoSConfig(
        equivalent_rank=hyper["equivalent_rank_e"],
        private_rank=hyper["private_rank_p"],
        r=hyper["r"],
        shards_per_vector=hyper["shards_per_vector_l"],
        lora_alpha=hyper["alpha"],
        save_basis=True,
        target_modules=[str(index) for index in range(hyper["num_layers"])],
    )
    layers = {str(i): f"layer{i}" for i in range(hyper["num_layers"])}
    state = {
        index: {side: given[f"{name}.{side}"] for side in ("index_A", "index_B")}
        for index, name in layers.items()
    }
    state["0"] |= {f"pools.{pool}": given[pool] for pool in ("pool_A", "pool_B")}
    model = nn.ModuleList(case.linear(given[f"{name}.weight"]) for name in layers.values())
    model = case.adapt(model, config, state)
    outputs = {}
    for index, name in layers.items():
        y, adapter = case.layer(model, index)(given["x"]), case.adapter(model, index)
        (y * given[f"{name}.cotangent"]).sum().backward()
        a, b = adapter.factors()
        outputs |= {f"{name}.y": y, f"{name}.lora_A": a, f"{name}.lora_B": b}
        outputs[f"{name}.delta_weight"] = adapter.delta_weight()
    pools = case.adapter(model, "0").pools
    return outputs | {f"grad.{name}": pools[name].grad for name in ("pool_A", "pool_B")}
