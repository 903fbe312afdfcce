"""Two processes under torchrun (gloo): DDP and FSDP2 give what one process gives on the whole batch.

Run as a script by torchrun this file is the worker: it tries every optimiser in one launch and writes what it found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.optim import DCTAdamW, GaLore, Trion

WORLD, STEPS = 2, 4
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


def work(report: Path) -> None:
    """One process of the two: tries everything, writes what failed."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, failures = dist.get_rank(), {}
    for name, make in OPTIMIZERS.items():
        alone = net()
        train(alone, make(alone.parameters()), range(STEPS))
        wanted = whole(alone)
        for kind in KINDS:
            try:
                got = (
                    fsdp(make, rank, kind == "fsdp-resumed")
                    if kind.startswith("fsdp")
                    else ddp(make, rank, kind == "zero")
                )
                # one unit of 8 bits may round the other way
                close = {"rtol": 0, "atol": 1e-3} if name == "dct-int8" else CLOSE
                torch.testing.assert_close(got, wanted, **close)
            except Exception as error:  # the other process must not wait for this one
                failures[f"{name}/{kind}"] = "".join(traceback.format_exception(error)[-4:])
            dist.barrier()
    (report / f"{rank}.json").write_text(json.dumps(failures))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What failed in either process, by optimiser and kind."""
    report = tmp_path_factory.mktemp("torchrun")
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={WORLD}",
        __file__,
        str(report),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(3):  # gloo loses a connection now and then while another test's processes start
        done = subprocess.run(
            [sys.executable, *command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if "Connection closed by peer" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((report / f"{rank}.json").read_text()) for rank in range(WORLD)]
    return {key: text for one in found for key, text in one.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_processes_do_what_one_does(name: str, kind: str, failures: dict[str, str]) -> None:
    assert f"{name}/{kind}" not in failures, failures[f"{name}/{kind}"]


if __name__ == "__main__":
    work(Path(sys.argv[1]))
