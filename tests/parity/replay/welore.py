"""WeLore's ranks and factors of every matrix of a model, under whatever names the case gives them."""

import re

import torch

from eckart.compression import WeLore
from eckart.compression._layers import FactorizedLinear
from eckart.compression.welore import is_low_rank, pruned_count
from eckart.linalg.spectrum import singular_values

INPUTS = [r".+\.weight", "x"]


def replay(case):
    weights = {n.removesuffix(".weight"): w for n, w in case.inputs.items() if n.endswith(".weight")}
    threshold, least = case.hyper["rank_threshold"], case.hyper["min_ratio"]
    values = {name: singular_values(weight) for name, weight in weights.items()}
    pruned = {name: pruned_count(s, threshold) for name, s in values.items()}
    chosen = {name: is_low_rank(s, threshold, least) for name, s in values.items()}
    method = WeLore(threshold=threshold, min_ratio=least)
    layers = {
        name: FactorizedLinear.of(
            method.factors(weight, None, values[name].numel() - pruned[name], None), weight
        )
        for name, weight in weights.items()
        if chosen[name]
    }
    shape = (case.hyper["layers"], -1)
    target = re.search(r"input to (\S+)", case.description["arrays"]["x"])[1]
    return {
        **{f"{name}.singular_values": s for name, s in values.items()},
        **{f"{name}.W_eff": layer.weight for name, layer in layers.items()},
        "pruned": torch.tensor(list(pruned.values())).reshape(shape),
        "is_lrc": torch.tensor(list(chosen.values())).long().reshape(shape),
        "reduced_total": [
            sum(pruned[name] for name in layers),
            sum(s.numel() for s in values.values()),
        ],
        "y": layers[target](case.inputs["x"]) if target in layers else case.inputs["x"] @ weights[target].T,
    }
