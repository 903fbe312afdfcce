"""PELA: the factors of a teacher, then losses and gradients of a student that has moved.

The network is read from the case: its layers in order, "name in->out bias" or an activation.
"""

import re

import torch
from torch import nn

from eckart.compression import PELA, Distillation
from eckart.compression._layers import FactorizedLinear
from eckart.compression._method import rank_for_ratio
from eckart.layers._replacing import install

INPUTS = [r"teacher\..+", r"perturbed\..+", r"head\.(weight|bias)", "x"]
NOT_COMPARED = {r"student\..+": "singular vectors' signs are free: products are compared (W_eff)"}
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}


def replay(case):
    ratio, epsilon = case.hyper["compress_ratio"], case.hyper["inf_norm_eps"]
    teacher, names, features = _network(case, "teacher")
    student, _, _ = _network(case, "teacher")
    ranks = {n: rank_for_ratio(tuple(teacher.get_submodule(n).weight.shape), 1 - 1 / ratio, 1) for n in names}
    for name, rank in ranks.items():
        layer = teacher.get_submodule(name)
        factors = PELA().factors(layer.weight, layer.bias, rank, None)
        install(
            student, name, FactorizedLinear.of(factors.__class__(*(_plain(f) for f in factors)), layer.weight)
        )
    products = {f"{name}.W_eff": student.get_submodule(name).weight.detach().clone() for name in names}
    alpha, gamma = case.hyper["kd_alpha"], case.hyper["inf_norm_weight"]
    distill = Distillation(
        student, teacher, epsilon=epsilon, features=features
    )  # weights of 0 would leave losses out
    start = distill.weight_perturbation().detach()
    with torch.no_grad():
        for name, value in case.inputs.items():
            if name.startswith("perturbed."):
                place = name.removeprefix("perturbed.").replace(".0.", ".A.").replace(".1.", ".B.")
                student.get_parameter(place).copy_(value)
    parts = distill.parts(case.inputs["x"])
    (alpha * parts["fd"] + gamma * parts["wp"]).backward()
    pairs = {n: student.get_submodule(n) for n in names}
    return {
        **products,
        **{
            f"grad.{n}.{i}.weight": layer.weight.grad
            for n, p in pairs.items()
            for i, layer in enumerate((p.A, p.B))
        },
        "ranks": list(ranks.values()),
        "loss_inf_norm_init": start,
        "loss_inf_norm": parts["wp"],
        "loss_fm": parts["fd"],
        "loss_sr": parts["logit"],
        "y_teacher": teacher(case.inputs["x"]),
        "y_student": student(case.inputs["x"]),
    }


def _plain(tensor):
    return None if tensor is None else tensor.detach()


def _network(case, owner):
    """A sequence of the case's layers; the names that are factorised, and the modules that give the features."""
    network, names, features = nn.Sequential(), [], []
    for part in case.hyper["layers"].split(","):
        words = part.split()
        if words[0] in ACTIVATIONS:
            name = f"{words[0]}_{len(network)}"
            network.add_module(name, ACTIVATIONS[words[0]]())
            features[-1] = name
            continue
        assert re.fullmatch(r"\d+->\d+", words[1]), part
        head = words[0] == "head"
        prefix = words[0] if head else f"{owner}.{words[0]}"
        network.add_module(
            words[0], case.linear(case.inputs[f"{prefix}.weight"], case.inputs.get(f"{prefix}.bias"))
        )
        if not head:
            names.append(words[0])
            features.append(words[0])
    return network, names, features
