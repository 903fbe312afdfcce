"""FSDP2: of several processes each holds a share of weights, gradients and optimiser state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from eckart.errors import InputError


def shard(model: nn.Module) -> None:
    """Give each process its share: every block is gathered when it is called and freed again, the rest with the model.

    Args:
        model: of transformers, with equal values in all processes; the process group stands.

    Raises:
        InputError: there is one process only.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized() or dist.get_world_size() < 2:
        raise InputError("--fsdp in one process: start several by torchrun, or leave it out")
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # the Trainer's own mark of a model that is sharded already
    model._is_distributed_loading_by_transformers = True  # type: ignore[assignment]


def check_trainer(trainer: Trainer) -> None:
    """Refuse a Trainer that would wrap a sharded model once more.

    Raises:
        InputError: transformers is too old.
    """
    if not getattr(trainer, "is_distributed_loading_by_transformers", False):
        raise InputError(
            "--fsdp: this transformers cannot train a model that is sharded; install a later one"
        )


def gathered(model: nn.Module, make: Callable[[], nn.Module]) -> nn.Module | None:
    """The whole model on the CPU of the first process, None in the others; all must call it.

    Args:
        model: sharded.
        make: builds a model of the same kind.
    """
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if dist.get_rank() != 0:
        return None
    whole = make()
    whole.load_state_dict(state)
    return whole
