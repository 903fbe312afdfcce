"""Two processes under torchrun (gloo): DDP and FSDP2 give what one process gives on the whole batch.

Run as a script by torchrun this file is the worker: it tries every optimiser in one launch and writes what it found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from two_processes import WORLD, failures_of, try_all

from eckart.optim import DCTAdamW, GaLore, Trion

STEPS = 4
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "dct": lambda params: DCTAdamW(params, lr=0.01, rank=2, error_feedback="full"),
    "dct-l2-gap": lambda params: DCTAdamW(params, lr=0.01, rank=2, norm=2, update_gap=2, transform="matmul"),
    "dct-int8": lambda params: DCTAdamW(params, lr=0.01, rank=2, error_feedback="int8"),
    "trion": lambda params: Trion(params, lr=0.01, rank=2, norm=2),
    "galore": lambda params: GaLore(params, lr=0.01, rank=2, update_gap=2),
}
KINDS = ("ddp", "zero", "fsdp", "fsdp-resumed")


class Net(nn.Module):
    """Sides that two processes cannot halve (7, 5), left and right, a convolution, vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 5, 2)
        self.up, self.down = nn.Linear(5, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(self.conv(x).mT)))


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def batch(step: int) -> Tensor:
    return torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, rank: int | None = None) -> None:
    for t in steps:
        x = batch(t) if rank is None else batch(t).chunk(WORLD)[rank]
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()


def whole(model: nn.Module) -> dict[str, Tensor]:
    parts = {name.removeprefix("module."): p.detach() for name, p in model.named_parameters()}
    return {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in parts.items()}


def ddp(make: Any, rank: int, zero: bool) -> dict[str, Tensor]:
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(net())
    if zero:
        example = make([torch.zeros(4, 4, requires_grad=True)])
        options = {k: v for k, v in example.defaults.items() if k != "low_rank"}
        optimizer: Any = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=type(example), **options)
    else:
        optimizer = make(model.parameters())
    train(model, optimizer, range(STEPS), rank)
    return whole(model)


def fsdp(make: Any, rank: int, resumed: bool) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))

    def sharded() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = net()
        fully_shard(model, mesh=mesh)
        return model, make(model.parameters())

    model, optimizer = sharded()
    half = STEPS // 2
    train(model, optimizer, range(half), rank)
    if resumed:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=False)
        state = get_optimizer_state_dict(model, optimizer, options=options)
        if rank == 0:  # the gathered state is that of one process
            alone = net()
            one = make(alone.parameters())
            train(alone, one, range(half))
            for name, p in alone.named_parameters():
                assert state["state"][name].keys() == one.state[p].keys()
                for key, value in one.state[p].items():
                    close = CLOSE if value.dtype != torch.uint8 else {"rtol": 0, "atol": 1}
                    torch.testing.assert_close(state["state"][name][key], value, **close)
        everyone: list[Any] = [state]
        torch.distributed.broadcast_object_list(everyone, src=0)
        values = whole(model)
        model, optimizer = sharded()
        with torch.no_grad():
            for name, p in model.named_parameters():
                fresh: Any = p
                from torch.distributed.tensor import distribute_tensor

                p.copy_(distribute_tensor(values[name], mesh, fresh.placements))
        set_optimizer_state_dict(
            model, optimizer, everyone[0], options=StateDictOptions(full_state_dict=True)
        )
    train(model, optimizer, range(half, STEPS), rank)
    return whole(model)


def compare(name: str, kind: str, rank: int) -> None:
    make = OPTIMIZERS[name]
    alone = net()
    train(alone, make(alone.parameters()), range(STEPS))
    sharded, special = kind.startswith("fsdp"), kind in ("zero", "fsdp-resumed")
    got = fsdp(make, rank, special) if sharded else ddp(make, rank, special)
    # one unit of 8 bits may round the other way
    close = {"rtol": 0, "atol": 1e-3} if name == "dct-int8" else CLOSE
    torch.testing.assert_close(got, whole(alone), **close)


def cases(rank: int) -> dict[str, Callable[[], None]]:
    return {f"{name}/{kind}": partial(compare, name, kind, rank) for name in OPTIMIZERS for kind in KINDS}


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What failed in either process, by optimiser and kind."""
    return failures_of(__file__, tmp_path_factory.mktemp("torchrun"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_processes_do_what_one_does(name: str, kind: str, failures: dict[str, str]) -> None:
    assert f"{name}/{kind}" not in failures, failures[f"{name}/{kind}"]


if __name__ == "__main__":
    try_all(Path(sys.argv[1]), cases)
