"""SaRA: a layer with its bias, trained by AdamW under the rule that penalises rank and chooses again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from eckart.adapters import SaRAConfig
from eckart.adapters.sara import learning_rate
from eckart.training import get_rule

INPUTS = ("weight0", "bias0", "x", "target")


def replay(case: Any) -> dict[str, Any]:
    given, hyper = case.inputs, case.hyper
    base = nn.ModuleDict({"layer": case.linear(given["weight0"], given["bias0"])})
    config = SaRAConfig(threshold=hyper["threshold"], train_bias=True, target_modules=["layer"])
    model = case.adapt(base, config, {})
    layer, adapter = case.layer(model, "layer"), case.adapter(model, "layer")
    optimizer = torch.optim.AdamW(
        [adapter.sara_learn, adapter.sara_learn_bias],
        lr=hyper["lr"],
        betas=hyper["betas"],
        eps=hyper["eps"],
        weight_decay=hyper["weight_decay"],
    )
    rule = get_rule("sara-selection")(
        threshold=hyper["threshold"],
        lambda_rank=hyper["lambda_rank"],
        progressive_step=hyper["progressive_iter"],
        reset_state=hyper["reset_state_on_reselect"],
    ).attach(model, optimizer, steps=hyper["steps"])

    def packed(name: str, size: int) -> Any:
        mask = np.zeros(size, dtype=bool)
        mask[adapter.get_buffer(f"{name}_index").long()[rule.active[f"layer.{name}"]].numpy()] = True
        return np.packbits(mask)

    masks = lambda stage: {  # noqa: E731
        f"mask{stage}_weight": packed("sara_learn", given["weight0"].numel()),
        f"mask{stage}_bias": packed("sara_learn_bias", given["bias0"].numel()),
    }
    outputs, rows = masks(""), {name: [] for name in ("weight", "bias", "loss", "norm", "gradient")}
    for _ in range(hyper["steps"]):
        optimizer.zero_grad()
        loss = (layer(given["x"]) - given["target"]).square().mean()
        loss.backward()
        rows["loss"].append(loss.detach())
        rows["gradient"].append(adapter.sara_learn.grad.clone())
        optimizer.step()
        rows["weight"].append(adapter.sara_learn.detach().clone())
        rows["bias"].append(adapter.sara_learn_bias.detach().clone())
        first = torch.zeros_like(
            given["weight0"]
        ).flatten()  # the case's norms are of the first choice throughout
        first[adapter.sara_learn_index.long()] = adapter.sara_learn.detach()
        rows["norm"].append(torch.linalg.matrix_norm(first.view_as(given["weight0"]), "nuc"))
    outputs |= masks("2")
    names = {"weight": "learn_weight", "bias": "learn_bias", "loss": "losses", "norm": "nuclear_norms"}
    outputs |= {name: torch.stack(rows[row]) for row, name in names.items()}
    return outputs | {"task_grad_learn_weight": torch.stack(rows["gradient"]), "auto_lr": learning_rate(2e-3)}
