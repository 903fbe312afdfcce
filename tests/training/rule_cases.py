"""What the tests of rules share: a small model with adapters, a training that is killed and resumed, and its loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import eckart
from eckart.training import Rule


class Net(nn.Module):
    """Three layers `blocks.i.lin`, of unequal sides."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"lin": nn.Linear(*sides)}) for sides in ((8, 10), (10, 12), (12, 6))
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block["lin"](x))
        return x


def model(slug: str = "lora", dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    """The net with adapters, always of the same numbers, in training mode."""
    torch.manual_seed(0)
    options = {"target_modules": ["lin"], "r": 4} | options
    return eckart.adapt(Net().to(dtype), slug, **options).train()


def trained(m: nn.Module) -> list[nn.Parameter]:
    return [p for p in m.parameters() if p.requires_grad]


def batch(step: int, rows: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(rows, 8, generator=g, dtype=dtype), torch.randn(rows, 6, generator=g, dtype=dtype)


def loss_of(m: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return (m(x) - y).square().mean()


def steps(m: nn.Module, optimizer: torch.optim.Optimizer, count: int, start: int = 0) -> list[float]:
    """Losses of so many steps."""
    losses = []
    for step in range(start, start + count):
        optimizer.zero_grad()
        loss = loss_of(m, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        x, y = batch(i, 1, torch.float32)
        return {"x": x[0], "y": y[0]}


class Loss(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.inner(x) - y).square().mean()}


def resumed_equals_whole(
    folder: Path, make: Callable[[], Rule], cut: int, total: int = 8, slug: str = "lora", **options: Any
) -> Rule:
    """Train with a rule in the Trainer, once in one piece and once killed after ``cut`` steps and resumed with fresh
    objects, and compare every number of model and rule."""

    def run(where: Path, until: int, resume: bool) -> tuple[Rule, nn.Module]:
        rule, m = make(), Loss(model(slug, torch.float32, **options))
        args = TrainingArguments(
            str(where),
            max_steps=total,
            save_steps=1,
            per_device_train_batch_size=4,
            learning_rate=0.02,
            weight_decay=0.1,
            report_to="none",
            disable_tqdm=True,
            seed=0,
            use_cpu=True,
            save_total_limit=2,
        )
        trainer = Trainer(m, args, train_dataset=Rows(), callbacks=[rule.callback()])

        class Stop(type(trainer.callback_handler.callbacks[0])):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                control.should_training_stop = state.global_step == until

        trainer.add_callback(Stop)
        trainer.train(resume_from_checkpoint=resume)
        return rule, m

    whole, expected = run(folder / "whole", total, False)
    run(folder / "parts", cut, False)
    again, found = run(folder / "parts", total, True)
    assert again.step == whole.step == total
    for (name, one), two in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, msg=name)
    state, other = again.state_dict(), whole.state_dict()
    assert state.keys() == other.keys()
    for name, value in state.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, msg=name)
    return whole
