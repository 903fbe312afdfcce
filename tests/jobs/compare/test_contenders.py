"""What takes part in a comparison, made ready for one run."""

from __future__ import annotations

import pytest
import torch
from toy_task import ToyTask

from eckart.jobs.compare.contenders import contenders


@pytest.mark.parametrize("method", ["lora", "peft:dora"])
def test_an_adapter_starts_from_the_seed_of_its_run_and_from_nothing_else(method: str) -> None:
    task = ToyTask()
    found = next(c for c in contenders(task, method, "5%", None, 3, None) if c.name == method)
    starts = []
    for seed, before in ((0, 1), (1, 1), (0, 2)):
        torch.manual_seed(before)
        model = found.prepare(task.fresh_model(0), task, seed)
        starts.append([p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name])
    first, other, again = starts
    assert first and all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


def test_methods_that_are_not_named_try_as_many_learning_rates_as_those_that_are() -> None:
    found = contenders(ToyTask(), "lora,svfit", "5%", {"lora": [1e-3, 1e-2]}, 3, None)
    rates = {c.name: c.learning_rates for c in found if c.learning_rates}
    assert rates["lora"] == (1e-3, 1e-2)
    assert {len(tried) for tried in rates.values()} == {2} and len(rates) >= 3
