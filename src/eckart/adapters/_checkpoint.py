"""What makes a checkpoint refusable before it touches a model: its tensors, and the base weight it belongs to."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.errors import InputError, first_line
from eckart.linalg.random import seeded_generator
from eckart.tensors import check_finite, read_finite

WEIGHTS_NAME, PICKLED_NAME = "adapter_model.safetensors", "adapter_model.bin"
INSIDE = ".eckart_adapters."
"""What the key of a tensor of an adapter has in it."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MODEL_PREFIX = "base_model.model."
"""What stands before a layer's name in the keys of a checkpoint."""


def find_weights(directory: Path) -> Path:
    """The one file of weights that a local adapter checkpoint has, and that PEFT will read.

    Raises:
        InputError: none, several, or weights in pieces, of which PEFT reads one.
    """
    files = [
        file
        for file in sorted(directory.glob("adapter_model*"))
        if file.suffix in (".safetensors", ".bin", ".json")
    ]
    names = [file.name for file in files]
    if not {WEIGHTS_NAME, PICKLED_NAME} & set(names):
        raise InputError(f"checkpoint {directory} has no {WEIGHTS_NAME}: it is incomplete or not an adapter")
    if len(files) > 1:
        raise InputError(
            f"checkpoint {directory} holds {' and '.join(names[:2])}, of which one would be read: remove the other"
        )
    return files[0]


def read_outline(directory: Path, whole: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors of a local adapter checkpoint, each read once and found to be of finite numbers.

    Args:
        directory: of the checkpoint.
        whole: names of an adapter's buffers that are kept, as are the tensors of other modules; all others come back
            on the meta device, as shapes.

    Raises:
        InputError: the file is not there, one of several, cut short or no safetensors file, or a tensor holds NaN or
            Inf.
    """
    path = find_weights(directory)
    shown = f"checkpoint {directory}"
    found = read_finite(path, shown) if path.suffix == ".safetensors" else _read_by_peft(path, shown)
    return {
        key: tensor if INSIDE not in key or key.rpartition(".")[2] in whole else tensor.to("meta")
        for key, tensor in found
    }


def _read_by_peft(path: Path, shown: str) -> Iterator[tuple[str, Tensor]]:
    """As `read_finite`, for the file that PEFT writes without safetensors: PEFT reads it, tensors and nothing else."""
    from peft.utils.save_and_load import load_peft_weights

    try:
        tensors = load_peft_weights(str(path.parent), device="cpu")
    except Exception as error:
        raise InputError(
            f"{shown}: {path.name} is damaged or holds more than tensors ({first_line(error)})"
        ) from None
    for name, tensor in tensors.items():
        check_finite(name, tensor, path, shown)
        yield name, tensor


def compare_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint whose tensors of adapters or of modules trained in full are not those this model and config
    have.

    Raises:
        InputError: a tensor is missing, or has another shape or kind of numbers.
    """
    if missing := sorted(set(expected) - set(found)):
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
        kind = found[key].dtype
        if kind not in FLOATS if tensor.dtype in FLOATS else kind != tensor.dtype:
            raise InputError(
                f"checkpoint tensor {key} is of {kind}, this model needs {tensor.dtype}: save it again in that dtype"
            )


def check_dtype(name: str, weight: Tensor) -> None:
    """Refuse a frozen weight of numbers to which nothing can be added.

    Raises:
        InputError: naming the layer and its dtype.
    """
    if weight.dtype not in FLOATS:
        raise InputError(
            f"the weight of layer {name} is of {weight.dtype}, to which nothing can be added: load the model in "
            "float32, bfloat16 or float16, or quantise it by torchao or bitsandbytes"
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
