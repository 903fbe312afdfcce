"""Safetensors files read with care: every tensor whole and of finite numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.errors import InputError, first_line

if TYPE_CHECKING:
    from torch import Tensor


def read_finite(path: Path, shown: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file by name, one in memory at a time, each found to be of finite numbers.

    Args:
        path: the file.
        shown: what the message says it belongs to, such as ``"--model bert"``.

    Raises:
        InputError: the file is cut short or no safetensors file, or a tensor holds NaN or Inf.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                tensor = file.get_tensor(name)
                check_finite(name, tensor, path, shown)
                yield name, tensor
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{shown}: {path.name} is damaged, truncated or corrupt ({first_line(error)}): save or copy it again"
        ) from None


def check_finite(name: str, tensor: Tensor, path: Path, shown: str) -> None:
    """Refuse a tensor of a file that holds NaN or Inf.

    Raises:
        InputError: it does.
    """
    if not _is_finite(tensor):
        raise InputError(f"{shown}: tensor {name} in {path.name} holds NaN or Inf: it cannot be used")


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; PyTorch does not ask this of numbers of eight bits."""
    tensor = tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
    return bool(tensor.isfinite().all())
