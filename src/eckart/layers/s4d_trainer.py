"""A transformers Trainer whose optimizer spares the dynamics of S4D layers."""

from __future__ import annotations

from typing import cast

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer

from eckart.layers.s4d import SSM_LR, dynamics


class S4DTrainer(Trainer):
    """`transformers.Trainer`, but A, B and Δ of `S4D` layers learn at 1e-3 at most and without weight decay.

    A plain Trainer gives them the rate and the decay of all others. An optimizer that is passed in is left as it is.
    """

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The Trainer's own optimizer, its groups split as by `param_groups`."""
        if self.optimizer is not None:
            return super().create_optimizer(model)
        optimizer: Optimizer = super().create_optimizer(model)
        slow = {id(p) for p in dynamics(cast(nn.Module, self.model if model is None else model))}
        for group in list(optimizer.param_groups):
            apart = [p for p in group["params"] if id(p) in slow]
            if apart:
                group["params"] = [p for p in group["params"] if id(p) not in slow]
                rest = {
                    name: value
                    for name, value in group.items()
                    if name not in ("params", "lr", "weight_decay")
                }
                optimizer.add_param_group(
                    {"params": apart, "lr": min(group["lr"], SSM_LR), "weight_decay": 0.0, **rest}
                )
        return optimizer
