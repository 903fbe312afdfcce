"""TRP: the first projection and its sub-gradient, three iterations, and the network factorised after them."""

import copy

import torch
from torch import nn

from eckart.compression import TrainedRankPruning
from eckart.compression.trp import factorized
from eckart.layers._replacing import install
from eckart.linalg.filters import filter_svd, ranks_above, ranks_for_energy

INPUTS = ["x", "g", r"conv\d+\.weight"]
NOT_COMPARED = {
    r"(NC|VH)\.conv\d+\.f[01]": "singular vectors' signs are free, and how Σ is split; the outputs of the factors "
    "are compared (y_decomposed)",
}
STEPS = 3


def replay(case):
    outputs = {}
    for scheme in ("NC", "VH", "ND"):
        outputs |= {f"{scheme}.{name}": value for name, value in _scheme(case, scheme).items()}
    return outputs


def _network(case):
    weights = {n.removesuffix(".weight"): w for n, w in case.inputs.items() if n.endswith(".weight")}
    network = nn.Sequential()
    for i, (name, weight) in enumerate(weights.items()):
        if i:
            network.add_module(f"relu{i}", nn.ReLU())
        network.add_module(name, case.conv(weight, padding=weight.shape[-1] // 2))
    return network, list(weights)


def _scheme(case, scheme):
    hyper = case.hyper
    network, names = _network(case)
    optimizer = torch.optim.SGD(network.parameters(), lr=hyper["lr"])
    rule = TrainedRankPruning(
        network, optimizer, scheme, hyper["energy"], hyper["period"], hyper["nuclear_weight"]
    )
    first = copy.deepcopy(network)
    probe = TrainedRankPruning(
        first,
        torch.optim.SGD(first.parameters(), lr=0.0),
        scheme,
        hyper["energy"],
        period=1,
        nuclear_weight=1.0,  # the direction is the same at every weight, and none is kept at 0
    )
    probe.project()
    outputs = {}
    for name in probe.names:
        outputs[f"{name}.projected"] = first.get_submodule(name).weight
        outputs[f"{name}.subgradient"] = probe._subgradients[name]
    for _ in range(STEPS):
        loss = (network(case.inputs["x"]) * case.inputs["g"]).sum() / 1000
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rule.detach()
    outputs |= {f"{name}.after3": network.get_submodule(name).weight.detach().clone() for name in names}
    ranks = []
    for name in rule.names:
        layer = network.get_submodule(name)
        s = filter_svd(layer.weight.detach(), scheme).S
        kept = (
            ranks_for_energy(s, hyper["final_energy_ND"])
            if scheme == "ND"
            else ranks_above(s, hyper["final_value_threshold"])
        )
        ranks.append(int(kept.max()))
        install(network, name, factorized(layer, scheme, ranks[-1]))
    return {**outputs, "ranks": ranks, "y_decomposed": network(case.inputs["x"])}
