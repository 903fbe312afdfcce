"""Safetensors files read with care: every tensor whole and of finite numbers; and the state of what trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from eckart.errors import InputError, first_line
from eckart.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor, nn


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


def places(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Names of layers in a checkpoint → in a model that may be the backbone of the one that was saved, or hold it.

    Raises:
        InputError: a layer that the model has not.
    """
    there = {name for name, _ in model.named_modules()}
    prefix = getattr(model, "base_model_prefix", "") + "."
    found = {}
    for name in names:
        options = (name, name.removeprefix(prefix), prefix + name)
        place = next((option for option in options if option in there), None)
        if place is None:
            raise InputError(
                f"the checkpoint has changed layer {name}, which {type(model).__name__} has not: load it with the "
                "class that its config.json names under architectures"
            )
        found[name] = place
    return found


def check_stored(files: Iterable[Any], layers: Mapping[str, nn.Module], model: Any) -> None:
    """Hold what safetensors files have of some layers against the layers, under the names in the files and under those
    that transformers gives them on loading. Files with nothing of any of them are another model's affair.

    Args:
        files: of a checkpoint.
        layers: by their names in it, on any device.
        model: of transformers, which knows the renamings.

    Raises:
        InputError: a tensor of another shape, or none.
    """
    from safetensors import SafetensorError, safe_open
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [e for e in get_model_conversion_mapping(model) or [] if isinstance(e, WeightRenaming)]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        if Path(file).suffix != ".safetensors":
            continue
        try:
            with safe_open(file, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - the file is no mapping
                    shape = tuple(tensors.get_slice(key).get_shape())
                    shapes[key] = shapes[rename_source_key(key, renamings, [])[0]] = shape
        except SafetensorError as error:
            raise InputError(f"{file} is damaged or cut short ({first_line(error)}): copy it again") from None
    if not any(key.startswith(f"{name}.") for name in layers for key in shapes):
        return
    for name, layer in layers.items():
        for key, value in layer.state_dict().items():
            full, wanted = f"{name}.{key}", tuple(value.shape)
            found = shapes.get(full)
            if found is None:
                raise InputError(
                    f"{full} is missing from the checkpoint: it is damaged, or its config.json is another's"
                )
            if found != wanted:
                raise InputError(
                    f"{full} has shape {found}, its config.json says {wanted}: they are not of one model"
                )


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
