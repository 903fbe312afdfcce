"""SLTrain's layer by both routes, its gradients, and AdamW on its parameters."""

import torch

from eckart.layers import SLTrainLinear

INPUTS = ["lora_A", "lora_B", "sparse_index", "sparse_value", "bias", "x", "g", "target"]
TRAINED = ("lora_A", "lora_B", "sparse_value", "bias")


def replay(case):
    found = [_run(case, route) for route in ("dense", "factored")]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-10, atol=1e-12)
    return found[0]


def _layer(case, route):
    hyper, given = case.hyper, case.inputs
    mask = torch.zeros(hyper["out_features"] * hyper["in_features"], dtype=torch.bool)
    mask[given["sparse_index"]] = True
    layer = SLTrainLinear(
        hyper["in_features"],
        hyper["out_features"],
        bias="bias" in given,
        r=hyper["r"],
        lora_alpha=hyper["lora_alpha"],
        mask=mask.view(hyper["out_features"], hyper["in_features"]),
        route=route,
        dtype=torch.float64,
    )
    starts_at_zero = not bool(layer.lora_B.any())
    state = {n: given[n] for n in TRAINED if n in given}
    layer.load_state_dict(state, strict=False)
    assert torch.equal(layer.sparse_index.long(), given["sparse_index"])
    return layer, starts_at_zero


def _run(case, route):
    layer, starts_at_zero = _layer(case, route)
    x = case.inputs["x"].clone().requires_grad_()
    y = layer(x)
    y.backward(case.inputs["g"])
    trained = dict(layer.named_parameters())
    outputs = {
        "init_lora_B_is_zero": starts_at_zero,
        "weight": layer.dense_weight(),
        "y": y.detach(),
        "grad_x": x.grad,
    } | {f"grad_{name}": p.grad.clone() for name, p in trained.items()}
    if "target" in case.inputs:
        adamw = case.hyper["adamw"]
        options = {"betas": tuple(adamw["betas"]), "eps": adamw["eps"], "weight_decay": adamw["weight_decay"]}
        optimizer, losses = torch.optim.AdamW(layer.parameters(), lr=adamw["lr"], **options), []
        for _ in range(adamw["steps"]):
            optimizer.zero_grad()
            loss = (layer(case.inputs["x"]) - case.inputs["target"]).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        outputs |= {"losses": torch.stack(losses)} | {f"final_{n}": p.detach() for n, p in trained.items()}
    return outputs
