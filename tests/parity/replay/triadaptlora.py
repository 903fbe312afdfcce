"""TriAdaptLoRA: a layer of given blocks, whose triangles make up one core; and a run of its allocator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eckart.adapters import CoreLoRAConfig
from eckart.training import TriAdaptLoRA

INPUTS = [
    "weight|bias|x|g|X|Y",
    r"lora_(A|B|C_row|C_col)_\d+",
    r"m\d+_(weight|bias|lora_[AB]_init|new_[AB])",
]


def replay(case: Any) -> dict[str, Any]:
    return _layer(case) | _allocator(case)


def _layer(case: Any) -> dict[str, Any]:
    given, hyper = case.inputs, case.hyper["layer"]
    sizes = hyper["blocks"]
    ends = [sum(sizes[: j + 1]) for j in range(len(sizes))]
    core = torch.zeros(ends[-1], ends[-1], dtype=torch.float64)
    places = {}
    for j, (size, end) in enumerate(zip(sizes, ends, strict=True)):
        new, up_to = slice(end - size, end), slice(end)
        core[new, up_to] += given[f"lora_C_row_{j}"]
        core[up_to, new] += given[f"lora_C_col_{j}"]
        places |= {f"A_{j}": (new,), f"B_{j}": (slice(None), new)}
        places |= {f"C_row_{j}": (new, up_to), f"C_col_{j}": (up_to, new)}
    state = {
        "lora_A": torch.cat([given[f"lora_A_{j}"] for j in range(len(sizes))]),
        "lora_B": torch.cat([given[f"lora_B_{j}"] for j in range(len(sizes))], 1),
        "lora_C": core,
        "ranknum": torch.tensor([ends[-1]]),
    }
    config = CoreLoRAConfig(
        r=ends[-1], lora_alpha=2.0, scaling="constant", core="full", target_modules=["layer"]
    )
    host = nn.ModuleDict({"layer": case.linear(given["weight"], given["bias"])})
    model = case.adapt(host, config, {"layer": state})
    layer, adapter = case.layer(model, "layer"), case.adapter(model, "layer")
    x = given["x"].requires_grad_()
    y = layer(x)
    y.backward(given["g"])
    gradients = {
        f"grad_lora_{name}": getattr(adapter, f"lora_{name[0]}").grad[place] for name, place in places.items()
    }
    norms = {}
    for by in ("blocks", "rank"):
        optimizer = torch.optim.SGD(adapter.parameters(), 0.1)
        rule = TriAdaptLoRA(norm_by=by, target_rank=ends[-1]).attach(model, optimizer, steps=9)
        born = torch.cat([torch.full((size,), j) for j, size in enumerate(sizes)])
        target, rank = torch.tensor(ends[-1]), torch.tensor(ends[-1])
        of_layer = {"layer.born": born, "layer.freed": born, "layer.rank": rank}
        rule.load_state_dict({"target": target, "norms": rule.norms, **of_layer})
        norms[f"norm_over_{by}"] = rule.measure()[0]
    return {
        "y": y,
        "grad_x": x.grad,
        "delta_W": adapter.delta_weight(),
        # found by dividing delta_W by α/(R + 1e-5), while the code that made the case scales by 2
        "C": adapter.lora_C * adapter.scale * (ends[-1] + 1e-5) / hyper["lora_alpha"],
        "frobenius_C": norms["norm_over_rank"] * ends[-1],
        **norms,
        **gradients,
    }


def _allocator(case: Any) -> dict[str, Any]:
    given, hyper = case.inputs, case.hyper["allocator"]
    names = [f"m{i}" for i in range(len(hyper["dims"]) - 1)]
    r = max(len(given[f"{name}_new_A"]) for name in names) + hyper["r0"]
    config = CoreLoRAConfig(r=r, lora_alpha=2.0, scaling="constant", core="full", target_modules=names)
    host = nn.ModuleDict({n: case.linear(given[f"{n}_weight"], given[f"{n}_bias"]) for n in names})
    model = case.adapt(host, config, {n: _start(given, n, r) for n in names}).train()
    adapters = [case.adapter(model, name) for name in names]
    optimizer = torch.optim.SGD([p for a in adapters for p in a.parameters()], hyper["lr"])
    rule = TriAdaptLoRA(
        target_rank=hyper["target"],
        init_r=hyper["r0"],
        incre_rank_num=hyper["add_r"],
        init_warmup=hyper["warm"],
        incre_interval=hyper["interval"],
        reg_orth_coef=0.0,
        strict_budget=False,
        rescale_on_growth=False,
        rank_growth_model=hyper["model"].replace("-", ""),
    ).attach(model, optimizer, steps=hyper["steps"])
    rows: dict[str, list[Tensor]] = {}
    for x, target in zip(given["X"], given["Y"], strict=True):
        for name in names:
            x = case.layer(model, name)(x if name == "m0" else torch.tanh(x))
        loss = (x - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        note = {
            "loss": loss.detach(),
            "score": rule.importance,
            "rank": torch.tensor(list(rule.ranks.values())),
            "total_rank": torch.tensor(rule.total),
            "threshold": torch.tensor(rule.threshold, dtype=torch.float64),
        }
        for key, value in note.items():
            rows.setdefault(key, []).append(value)
    deltas = {f"{n}_delta_W_final": a.delta_weight() for n, a in zip(names, adapters, strict=True)}
    return deltas | {key: torch.stack(values) for key, values in rows.items()}


def _start(given: dict[str, Tensor], name: str, r: int) -> dict[str, Tensor]:
    a = torch.cat([given[f"{name}_lora_A_init"], given[f"{name}_new_A"]])
    b = torch.cat([given[f"{name}_lora_B_init"], given[f"{name}_new_B"]], 1)
    pad = nn.functional.pad
    return {
        "lora_A": pad(a, (0, 0, 0, r - len(a))),
        "lora_B": pad(b, (0, r - len(a))),
        "lora_C": torch.zeros(r, r, dtype=torch.float64),
        "ranknum": torch.tensor([r]),
    }
