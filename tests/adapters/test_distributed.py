"""Two processes under torchrun (gloo): DDP and FSDP2 give what one process gives on the whole batch.

Run as a script by torchrun this file is the worker: it tries every method in one launch and writes what it found.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import SLUGS, adapted, every_method, gradients, parameters, seeded
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from two_processes import WORLD, failures_of, try_all


class Block(nn.Module):
    """Two linear layers with a tanh between and a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    """Two blocks between an embedding and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(20, 8), nn.Conv1d(8, 6, 3, padding=1)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        return self.conv(x.mT)


EVERYWHERE = ["table", "conv", "up", "down"]
IDS = torch.arange(20).view(4, 5)
CLOSE = {"rtol": 1e-7, "atol": 1e-9}


def model_of(slug: str, targets: list[str] = EVERYWHERE, **options: Any) -> PeftModel:
    """The same model in every process."""
    base = seeded(Net, torch.float64)
    return adapted(slug, base, target_modules=targets, init_weights=False, **options).train()


def loss(outputs: Tensor) -> Tensor:
    """A mean over the batch, so that the mean over processes is the mean of the whole."""
    return outputs.square().mean()


def step(model: nn.Module, ids: Tensor) -> None:
    """Two steps of gradient descent."""
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        optimiser.zero_grad()
        loss(model(ids)).backward()
        optimiser.step()


def alone(slug: str, targets: list[str] = EVERYWHERE) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients and trained parameters of one process on the whole batch."""
    model = model_of(slug, targets)
    loss(model(IDS)).backward()
    first = gradients(model)
    step(model, IDS)
    return first, {name: p.detach().clone() for name, p in parameters(model).items()}


def ddp(slug: str, rank: int) -> None:
    from torch.nn.parallel import DistributedDataParallel

    wanted, trained = alone(slug)
    model = DistributedDataParallel(model_of(slug))
    mine = IDS.chunk(WORLD)[rank]
    loss(model(mine)).backward()
    torch.testing.assert_close(gradients(model.module), wanted, **CLOSE)
    step(model, mine)
    torch.testing.assert_close(dict(parameters(model.module)), trained, **CLOSE)


def fsdp(slug: str, rank: int, mesh: Any, route: str) -> None:
    """Each block is a unit of its own, gathered when it is called and freed again, and the rest is the root's."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    for targets in (EVERYWHERE, ["up", "down"]):
        wanted, trained = alone(slug, targets)
        model = model_of(slug, targets, route=route)
        for block in model.base_model.model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(type(p).__name__ == "DTensor" for p in model.parameters())
        mine = IDS.chunk(WORLD)[rank]
        loss(model(mine)).backward()
        whole = {name: grad.full_tensor() for name, grad in gradients(model).items()}
        torch.testing.assert_close(whole, wanted, **CLOSE)
        step(model, mine)
        whole = {name: p.detach().full_tensor() for name, p in parameters(model).items()}
        torch.testing.assert_close(whole, trained, **CLOSE)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    with torch.no_grad():
        outputs = model(IDS)
    if rank == 0:
        with tempfile.TemporaryDirectory() as directory:
            model.save_pretrained(directory, state_dict=state)
            loaded = PeftModel.from_pretrained(seeded(Net, torch.float64), directory)
        torch.testing.assert_close(loaded(IDS), outputs, **CLOSE)


def cases(rank: int) -> dict[str, Callable[[], None]]:
    from torch.distributed.device_mesh import init_device_mesh

    mesh, found = init_device_mesh("cpu", (WORLD,)), {}
    for slug in SLUGS:
        found[f"{slug}/ddp"] = partial(ddp, slug, rank)
        for route in ("factored", "folded"):
            found[f"{slug}/fsdp-{route}"] = partial(fsdp, slug, rank, mesh, route)
    return found


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What failed in either process, by method and kind."""
    return failures_of(__file__, tmp_path_factory.mktemp("torchrun"))


@every_method
@pytest.mark.parametrize("kind", ["ddp", "fsdp-factored", "fsdp-folded"])
def test_two_processes_do_what_one_does(slug: str, kind: str, failures: dict[str, str]) -> None:
    assert f"{slug}/{kind}" not in failures, failures[f"{slug}/{kind}"]


@pytest.fixture(scope="module")
def group_of_one() -> Iterator[None]:
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@every_method
@pytest.mark.parametrize("targets", [EVERYWHERE, ["up"]])
def test_state_goes_through_a_model_wrapped_by_the_first_fsdp(
    slug: str, targets: list[str], group_of_one: None
) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    wrapped = FullyShardedDataParallel(
        model_of(slug, targets).eval(), use_orig_params=True, device_id=torch.device("cpu")
    )
    with torch.no_grad():
        outputs = wrapped(IDS)
    state = get_peft_model_state_dict(wrapped)
    fresh = adapted(slug, seeded(Net, torch.float64), target_modules=targets)
    assert not set_peft_model_state_dict(fresh, state).unexpected_keys
    torch.testing.assert_close(fresh(IDS), outputs, **CLOSE)


if __name__ == "__main__":
    try_all(Path(sys.argv[1]), cases)
