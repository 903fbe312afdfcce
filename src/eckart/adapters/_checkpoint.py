"""What makes a checkpoint refusable before it touches a model: its tensors, and the base weight it belongs to."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.errors import InputError
from eckart.linalg.random import seeded_generator
from eckart.tensors import read_finite

WEIGHTS_NAME = "adapter_model.safetensors"
MODEL_PREFIX = "base_model.model."
"""What stands before a layer's name in the keys of a checkpoint."""


def read_outline(directory: Path, whole: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors of a local adapter checkpoint, each read once and found to be of finite numbers.

    Args:
        directory: of the checkpoint.
        whole: names of the buffers that are kept; all other tensors come back on the meta device, as shapes.

    Raises:
        InputError: the file is not there, cut short or no safetensors file, or a tensor holds NaN or Inf.
    """
    path = directory / WEIGHTS_NAME
    if not path.is_file():
        raise InputError(f"checkpoint {directory} has no {WEIGHTS_NAME}: it is incomplete or not an adapter")
    return {
        key: tensor if key.rpartition(".")[2] in whole else tensor.to("meta")
        for key, tensor in read_finite(path, f"checkpoint {directory}")
    }


def compare_shapes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint whose adapter tensors are not those this model and config have.

    Raises:
        InputError: a tensor is missing, has another shape or belongs to no layer.
    """
    adapter_keys = {key for key in found if ".eckart_adapters." in key}
    if missing := sorted(set(expected) - adapter_keys):
        raise InputError(
            f"checkpoint lacks {missing[0]} ({len(missing)} of {len(expected)} tensors are missing): "
            "it was saved for another model or method"
        )
    for key, tensor in expected.items():
        if found[key].shape != tensor.shape:
            raise InputError(
                f"checkpoint tensor {key} has shape {tuple(found[key].shape)}, this model needs {tuple(tensor.shape)}: "
                "it was saved for another model or was altered"
            )
    if extra := sorted(adapter_keys - set(expected)):
        raise InputError(
            f"checkpoint tensor {extra[0]} fits no adapted layer of this model ({len(extra)} such tensors): "
            "it was saved for another model or method"
        )


def weight_check(weight: Float[Tensor, "out in"], epsilon: float) -> list[float]:
    """Six numbers that tell one weight from another: ‖W‖, two projections uᵀWv/‖W‖ with random signs, the precision
    W was held in, and its two sizes.

    Args:
        weight: the frozen matrix.
        epsilon: the relative rounding of its stored dtype.
    """
    generator = seeded_generator("weight check", *weight.shape)
    norm = torch.linalg.vector_norm(weight, dtype=torch.float64).item()
    values = [norm]
    for _ in range(2):
        u, v = (torch.randint(0, 2, (n,), generator=generator) * 2 - 1 for n in weight.shape)
        product = weight.double() @ v.to(weight.device, torch.float64)
        values.append((u.to(product) @ product).item() / norm if norm else 0.0)
    return [*values, epsilon, *weight.shape]


def same_size(saved: list[float], now: list[float]) -> bool:
    """Whether two checks are of weights of one size."""
    return saved[4:] == now[4:]


def differs(saved: list[float], now: list[float], slack: float = 0.0) -> bool:
    """Whether two checks, of weights of one size, are further apart than the coarser of the two roundings.

    Args:
        saved: the check of one weight.
        now: that of the other.
        slack: relative difference allowed beyond the rounding; unrelated weights are of the order of 1 apart.
    """
    tolerance = 8 * max(saved[3], now[3]) + 1e-9 + slack
    norms = math.isclose(saved[0], now[0], rel_tol=tolerance)
    return not norms or any(abs(a - b) > tolerance for a, b in zip(saved[1:3], now[1:3], strict=True))
