"""Safetensors files read with care: every tensor whole and of finite numbers; and the state of what trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from eckart.errors import InputError, first_line
from eckart.files import atomic_write

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


def save_state(path: str | Path, state: Mapping[str, Tensor], step: int) -> None:
    """Write tensors and the step that they are of, whole or not at all."""
    from safetensors.torch import save_file

    with atomic_write(path) as file:
        save_file({name: value.contiguous() for name, value in state.items()}, file, {"step": str(step)})


def load_state(path: str | Path, shown: str) -> tuple[dict[str, Tensor], int]:
    """What `save_state` wrote.

    Args:
        path: the file.
        shown: whose state the message says it is.

    Raises:
        InputError: no such file, or a damaged one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            return state, int((file.metadata() or {}).get("step", 0))
    except (SafetensorError, OSError) as error:
        raise InputError(f"the state {path} of {shown} cannot be read ({error})") from None


class Stateful:
    """What acts while a model trains and is resumed from a file that holds its tensors and its step.

    Attributes:
        slug: its name in files and messages.
        kind: what stands before it in messages, such as ``"rule "``.
        step: how many steps it has seen.
    """

    slug: ClassVar[str]
    kind: ClassVar[str] = ""
    step: int

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs, as tensors."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from there, once attached to a model of the same shapes.

        Raises:
            InputError: the state is of another model or other options.
        """
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write the state and the step, whole or not at all."""
        save_state(path, self.state_dict(), self.step)

    def load(self, path: str | Path) -> None:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or a damaged one; as `load_state_dict`.
        """
        state, step = load_state(path, f"{self.kind}{self.slug}")
        self.load_state_dict(state)
        self.step = step
