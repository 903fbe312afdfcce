"""DCT-AdamW and Trion step by step from raw gradients, on both sides; the transforms on their own."""

import re

import torch

from eckart.linalg.dct import dct2, dct3
from eckart.optim import DCTAdamW, Trion

INPUTS = [r".+_p0", r".+_grads", r"dct_x_\d+"]
BASES = {"matmul": "dct3", "makhoul": "dct2"}
SCALES = {
    "sqrt(max(1,rows/cols))": "kj",
    "none": "none",
    "1": "none",
    "0.2*sqrt(max(rows,cols))": "kimi",
    "sqrt(rows/cols)": "dion",
}


def replay(case):
    outputs = {}
    for name, x in case.inputs.items():
        if found := re.fullmatch(r"dct_x_(\d+)", name):
            outputs |= {f"dct2_{found[1]}": dct2(x), f"dct3_{found[1]}": dct3(x)}
        if name.endswith("_p0"):
            layer = name.removesuffix("_p0")
            outputs |= _dct_adamw(case, layer)
            if "trion" in case.hyper:
                outputs |= _trion(case, layer)
    return outputs


def _run(case, layer, optimizer, after):
    (p,) = optimizer.param_groups[0]["params"]
    for grad in case.inputs[f"{layer}_grads"]:
        p.grad = grad.clone()
        optimizer.step()
        after(p)
        assert torch.equal(p.grad, grad)


def _dct_adamw(case, layer):
    hyper, makhoul = case.hyper, case.hyper["sim_type"] == "makhoul"
    p = case.inputs[f"{layer}_p0"].clone().requires_grad_()
    optimizer = DCTAdamW(
        [p],
        lr=hyper["lr"],
        rank=hyper["rank"],
        betas=tuple(hyper["betas"]),
        eps=hyper["eps"],
        weight_decay=hyper["weight_decay"],
        basis=BASES[hyper["sim_type"]],
        norm=1 if makhoul else abs(hyper["ell_norm"]),
        weighted=not makhoul and hyper["ell_norm"] < 0,
        update_gap=hyper["update_proj_gap"],
        error_feedback="full" if hyper["use_ef"] else None,
        rotate=hyper["rotate_subspace"],
        max_shape=hyper["max_shape"],
    )
    params, indices, state = [], [], optimizer.state[p]

    def after(p):
        params.append(p.detach().clone())
        if "indices" in state:
            indices.append(state["indices"].long())

    _run(case, layer, optimizer, after)
    outputs = {f"{layer}_params": torch.stack(params)}
    if indices:
        outputs |= {f"{layer}_{name}": state[name] for name in ("m", "v", "ef") if name in state}
        outputs[f"{layer}_indices"] = torch.stack(indices)
    return outputs


def _trion(case, layer):
    hyper, p = case.hyper["trion"], case.inputs[f"{layer}_p0"].clone().requires_grad_()
    # the authors' left branch projects on the rows of the cached matrix, their right branch on its columns
    left = p.ndim == 2 and p.shape[0] < p.shape[1]
    optimizer = Trion(
        [p],
        lr=hyper["lr"],
        rank=case.hyper["rank"],
        momentum=hyper["mu"],
        weight_decay=hyper["weight_decay"],
        scale=SCALES[hyper["scaling"]],
        ns_steps=hyper["ns_steps"],
        basis="dct2" if left else "dct3",
        norm=abs(hyper["norm"]),
        weighted=hyper["norm"] < 0,
        max_shape=case.hyper["max_shape"],
    )
    if not optimizer.is_low_rank(optimizer.param_groups[0], p):
        return {}
    indices, state, before = [], optimizer.state[p], [p.detach().clone()]

    def after(p):
        indices.append(state["indices"].long())
        before.append(p.detach().clone())

    _run(case, layer, optimizer, after)
    # O as the last step applied it: p' = (1 − lr·wd) p − lr·s·O
    rows, columns = p.shape
    sizes = {
        "kj": max(1, rows / columns) ** 0.5,
        "none": 1,
        "kimi": 0.2 * max(rows, columns) ** 0.5,
        "dion": (rows / columns) ** 0.5,
    }
    moved = (1 - hyper["lr"] * hyper["weight_decay"]) * before[-2] - before[-1]
    return {
        f"trion_{layer}_M": state["momentum_buffer"],
        f"trion_{layer}_O": moved / (hyper["lr"] * sizes[SCALES[hyper["scaling"]]]),
        f"trion_{layer}_params": before[-1],
        f"trion_{layer}_indices": torch.stack(indices),
    }
