"""What costs are measured with: the frozen floor and the peak of memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_task import ToyTask

from eckart.adapters import adapt
from eckart.tasks.instruments import FrozenFloor, PeakMemory


@pytest.fixture
def task() -> ToyTask:
    torch.set_num_threads(1)
    return ToyTask()


def test_the_floor_shares_the_weights_and_trains_nothing(task: ToyTask) -> None:
    model = task.fresh_model(0)
    floor = FrozenFloor(model)
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert {p.untyped_storage().data_ptr() for p in floor.model.parameters()} == storages
    reached = []
    first = floor.model.bert.encoder.layer[0].attention.self.query
    first.register_full_backward_hook(lambda *_: reached.append(1))
    seconds = floor.step(task.collator(task.train.rows[:4]))
    assert seconds > 0 and reached, "the backward pass goes through the first layer"
    assert all(p.grad is None for p in floor.model.parameters())
    assert all(p.requires_grad for p in model.parameters()), "the model it was made from is as it was"
    adapt(model, "lora", r=2, target_modules=["query"])
    assert not any("lora" in name or "eckart" in name for name, _ in floor.model.named_modules())


def test_peak_memory_counts_what_lives_at_once() -> None:
    held = torch.zeros(1000)
    with PeakMemory([held, held[:10]]) as memory:
        a = torch.zeros(5000)
        b = a + 1
        del a
        c = torch.zeros(2000)
        view = c.view(2, 1000)
    assert memory.peak == 4 * (1000 + 5000 + 5000)
    assert memory.current == 4 * (1000 + 5000 + 2000)
    assert len(b) + view.numel() == 7000


def test_peak_memory_of_a_step_holds_weights_gradients_and_activations() -> None:
    layer = nn.Linear(100, 100, bias=False)
    x = torch.zeros(50, 100)
    with PeakMemory([*layer.parameters(), x]) as memory:
        layer(x).relu().sum().backward()
    weight, activation = 4 * 100 * 100, 4 * 50 * 100
    assert 2 * weight + 2 * activation <= memory.peak <= 2 * weight + 5 * activation
