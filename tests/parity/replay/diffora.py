"""DiffoRA: the alternating search, the binary matrix, and the network in which unselected modules share an adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eckart.adapters import LoRAConfig
from eckart.training import DiffoRA

INPUTS = [r"l\d+_m\d+_(weight|lora_[AB]_init)", "alpha_init", "[XY]_(train|val)", r"shared_\w+_lora_[AB]"]


class Block(nn.ModuleDict):
    def forward(self, x: Tensor) -> Tensor:
        return x + self["m2"](torch.tanh(self["m1"](torch.tanh(self["m0"](x)))))


class Given(DiffoRA):
    """Its gates do not start equal."""

    def first_logits(self) -> Tensor:
        return self.alpha


def replay(case: Any) -> dict[str, Any]:
    given, hyper = case.inputs, case.hyper
    layers, modules = range(hyper["layers"]), range(hyper["modules_per_layer"])
    names = [(layer, m) for layer in layers for m in modules]
    host = nn.Sequential(
        *(Block({f"m{m}": case.linear(given[f"l{n}_m{m}_weight"]) for m in modules}) for n in layers)
    )
    config = LoRAConfig(
        r=hyper["r"], lora_alpha=hyper["lora_alpha"], target_modules=[f"{n}.m{m}" for n, m in names]
    )
    start = {f"{n}.m{m}": {f"lora_{k}": given[f"l{n}_m{m}_lora_{k}_init"] for k in "AB"} for n, m in names}
    model = case.adapt(host, config, start)
    adapters = {(n, m): case.adapter(model, f"{n}.m{m}") for n, m in names}
    rows: dict[str, list[Tensor]] = {}

    def validation(model: nn.Module, step: int) -> Tensor:
        return (model(given["X_val"][step]) - given["Y_val"][step]).square().mean()

    def note(**values: Tensor) -> None:
        for key, value in values.items():
            rows.setdefault(key, []).append(value.detach().clone())

    def searched() -> None:
        note(grad_alpha=rule.logits.grad.view(len(layers), -1), loss_val=rule.validation_loss)
        note(gates=rule.gates().view(len(layers), -1))

    optimizer = torch.optim.SGD([p for a in adapters.values() for p in a.parameters()], hyper["lr"])
    rule = Given(
        validation=validation,
        rho=hyper["rho"],
        search_steps=hyper["steps"],
        init="keep",
        dam_lr=hyper["lr_dam"],
        dam_optimizer="sgd",
    )
    rule.alpha = given["alpha_init"].flatten()
    rule.attach(model, optimizer)
    outputs: dict[str, Any] = {}
    for step, (x, y) in enumerate(zip(given["X_train"], given["Y_train"], strict=True)):
        searched()
        loss = (model(x) - y).square().mean()
        note(loss_train=loss)
        optimizer.zero_grad()
        loss.backward()
        if step == hyper["steps"] - 1:
            break
        optimizer.step()
    rule.detach()  # the last step is taken without rounding
    optimizer.step()
    alpha = rule.logits.detach().view(len(layers), -1)
    outputs |= {"alpha_final": alpha, "dam": rule.choose().view(len(layers), -1).double()}
    for (n, m), adapter in adapters.items():
        outputs |= {f"l{n}_m{m}_lora_{k}_final": getattr(adapter, f"lora_{k}").detach().clone() for k in "AB"}
    rule.dam, rule.sharing = rule.choose(), "none"
    rule._settle()
    outputs["y_masked"] = model(given["X_train"][0]).detach()
    return (
        outputs
        | {key: torch.stack(values) for key, values in rows.items()}
        | _shared(case, model, rule, adapters)
    )


def _shared(case: Any, model: nn.Module, rule: DiffoRA, adapters: dict[Any, Any]) -> dict[str, Any]:
    """Modules that lost count again and share the case's adapters."""
    given = case.inputs
    lost = [a for kept, a in zip(rule.dam.tolist(), adapters.values(), strict=True) if not kept]
    for adapter in lost:
        adapter.set_active(torch.ones(adapter.factor_rank, dtype=torch.bool))
    rule.sharing = "shape"
    rule._settle()
    owners = {}
    for adapter in lost:
        shape = "x".join(map(str, adapter.layer.shape.weight))
        owners[shape] = adapter
        with torch.no_grad():
            for key in "AB":
                getattr(adapter, f"lora_{key}").copy_(given[f"shared_{shape}_lora_{key}"])
    model.zero_grad()
    y = model(given["X_train"][0])
    loss = (y - given["Y_train"][0]).square().mean()
    loss.backward()
    gradients = {
        f"shared_{shape}_grad_{key}": getattr(adapter, f"lora_{key}").grad
        for shape, adapter in owners.items()
        for key in "AB"
    }
    return {"y_shared": y, "loss_shared": loss, **gradients}
