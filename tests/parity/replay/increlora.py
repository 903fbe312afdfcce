"""IncreLoRA as its code has it: reserve directions, the scaling falls as ranks grow, and the budget may be exceeded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eckart.adapters import CoreLoRAConfig
from eckart.training import IncreLoRA

INPUTS = [r"m\d+_(weight|bias|lora_[ABE]_init|reserve_[AB])", "X", "Y"]


def replay(case: Any) -> dict[str, Any]:
    given, hyper = case.inputs, case.hyper
    names = [f"m{i}" for i in range(len(hyper["dims"]) - 1)]
    r = max(len(given[f"{name}_reserve_A"]) for name in names) + hyper["r_init"]
    options = {"lora_alpha": hyper["lora_alpha"], "target_modules": names, "r": r}
    host = nn.ModuleDict({n: case.linear(given[f"{n}_weight"], given[f"{n}_bias"]) for n in names})
    model = case.adapt(host, CoreLoRAConfig(**options), {n: _start(given, n, r) for n in names}).train()
    adapters = [case.adapter(model, name) for name in names]
    optimizer = torch.optim.SGD([p for a in adapters for p in a.parameters()], hyper["lr"])
    rule = IncreLoRA(
        target_rank=hyper["target_total_rank"],
        init_r=hyper["r_init"],
        incre_rank_num=hyper["incre_rank_num"],
        init_warmup=hyper["init_warmup"],
        incre_interval=hyper["incre_interval"],
        reg_orth_coef=hyper["reg_orth_coef"],
        strict_budget=False,
        rescale_on_growth=False,
        top_h=hyper["top_h"],
        beta1=hyper["beta1"],
        beta2=hyper["beta2"],
        advance_learn=hyper["advance_learn"],
    ).attach(model, optimizer)
    outputs: dict[str, Any] = {}
    rows: dict[str, list[Any]] = {}
    for step, (x, target) in enumerate(zip(given["X"], given["Y"], strict=True)):
        for name in names:
            x = case.layer(model, name)(x if name == "m0" else torch.tanh(x))
        loss = (x - target).square().mean()
        orth = rule.orthogonality().detach()
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            outputs["y0"] = x.detach()
            penalised = hyper["reg_orth_coef"] * rule.orthogonality()
            factors = {
                (n, k): getattr(a, f"lora_{k}") for n, a in zip(names, adapters, strict=True) for k in "ABE"
            }
            slopes = torch.autograd.grad(penalised, list(factors.values()), allow_unused=True)
            for ((name, letter), p), slope in zip(factors.items(), slopes, strict=True):
                whole = p.grad if slope is None else p.grad + slope
                outputs[f"{name}_grad_{letter}0"] = _first(whole, letter, hyper["r_init"])
        optimizer.step()
        note = {
            "loss": torch.stack([loss.detach(), orth]),
            "score": rule.last,
            "exp_avg_ipt": rule.exp_avg_ipt,
            "exp_avg_unc": rule.exp_avg_unc,
            "rank": torch.tensor(list(rule.ranks.values())),
            "total_rank": torch.tensor(rule.total),
            "threshold": torch.tensor(rule.threshold, dtype=torch.float64),
        }
        for key, value in note.items():
            rows.setdefault(key, []).append(value)
    for module, adapter in zip(rule.modules, adapters, strict=True):
        there = module.rank + module.reserve
        for letter in "ABE":
            outputs[f"{module.name}_lora_{letter}_final"] = _first(
                getattr(adapter, f"lora_{letter}"), letter, there
            )
        outputs[f"{module.name}_delta_W_final"] = adapter.delta_weight()
    return outputs | {key: torch.stack(values) for key, values in rows.items()}


def _first(value: Tensor, letter: str, count: int) -> Tensor:
    return (value[:, :count] if letter == "B" else value[:count]).detach().clone()


def _start(given: dict[str, Tensor], name: str, r: int) -> dict[str, Tensor]:
    """The first rows and those of the reserve, in order; what is never used is zero."""
    a = torch.cat([given[f"{name}_lora_A_init"], given[f"{name}_reserve_A"]])
    b = torch.cat([given[f"{name}_lora_B_init"], given[f"{name}_reserve_B"]], 1)
    e = given[f"{name}_lora_E_init"]
    pad = nn.functional.pad
    return {
        "lora_A": pad(a, (0, 0, 0, r - len(a))),
        "lora_B": pad(b, (0, r - len(a))),
        "lora_E": pad(e, (0, 0, 0, r - len(e))),
        "ranknum": torch.tensor([r]),
    }
