"""A pruned model and its indices on disk: read without the large model ever being in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from eckart.compression.loram import Indices, Pruning, prune_model
from eckart.errors import InputError
from eckart.files import atomic_directory, atomic_write

INDICES, WEIGHTS, CONFIG = "pruning.safetensors", "model.safetensors", "config.json"
_NUMBERS = ("neurons", "kv_rows", "head_dim", "groups")


def save_pruning(pruning: Pruning, path: str | PathLike[str]) -> None:
    """Write indices and masks, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {f"mask.{name}": mask.contiguous() for name, mask in pruning.masks.items()}
    for name, indices in pruning.blocks.items():
        tensors |= {f"mlp.{name}": indices.mlp.contiguous(), f"kv.{name}": indices.kv.contiguous()}
    numbers = {name: str(getattr(pruning, name)) for name in _NUMBERS}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, numbers)


def load_pruning(path: str | PathLike[str]) -> Pruning:
    """What `save_pruning` wrote.

    Raises:
        InputError: no such file, or a damaged one.
    """
    from safetensors import SafetensorError, safe_open

    parts: dict[str, dict[str, Tensor]] = {"mask": {}, "mlp": {}, "kv": {}}
    try:
        with safe_open(str(path), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - the file is no mapping
                part, _, name = key.partition(".")
                parts[part][name] = file.get_tensor(key)
            told = file.metadata() or {}
        numbers = {name: int(told[name]) for name in _NUMBERS}
        blocks = {name: Indices(mlp, parts["kv"][name]) for name, mlp in parts["mlp"].items()}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"the indices {path} cannot be read ({error}): prune the model again") from None
    return Pruning(blocks, masks=parts["mask"], **numbers)


def save_pruned(
    model: Any, pruning: Pruning, directory: str | PathLike[str], *, overwrite: bool = False
) -> None:
    """Write a pruned transformers model, the config of the large one and the indices.

    Raises:
        InputError: the directory is there and not empty.
    """
    from safetensors.torch import save_file

    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}
    with atomic_directory(directory, overwrite=overwrite) as temporary:
        model.config.to_json_file(temporary / CONFIG, use_diff=False)
        save_file(state, temporary / WEIGHTS, {"class": type(model).__name__})
        save_pruning(pruning, temporary / INDICES)


def load_pruned(directory: str | PathLike[str]) -> tuple[Any, Pruning]:
    """The small model and its indices; what was pruned never takes memory.

    Raises:
        InputError: no such directory, damaged files, or weights of other shapes than the indices leave.
    """
    import transformers
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from safetensors import SafetensorError, safe_open

    place = Path(directory)
    pruning = load_pruning(place / INDICES)
    try:
        values: dict[str, Any] = json.loads((place / CONFIG).read_text("utf-8"))
        with safe_open(str(place / WEIGHTS), framework="pt") as file:
            kind = (file.metadata() or {})["class"]
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        source = getattr(transformers, kind)
        config = transformers.CONFIG_MAPPING[values.pop("model_type")].from_dict(values)
    except (SafetensorError, OSError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{place} holds no pruned model ({error}): prune the large one again") from None
    with init_empty_weights(include_buffers=False):
        model = source(config)
    prune_model(model, Pruning(**{**_fields(pruning), "masks": {}}))
    _load(model, state, place)
    return model.eval(), pruning


def _fields(pruning: Pruning) -> dict[str, Any]:
    return {name: getattr(pruning, name) for name in ("blocks", *_NUMBERS)}


def _load(model: Any, state: Mapping[str, Tensor], place: Path) -> None:
    try:
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise InputError(f"{place}: {str(error).splitlines()[-1].strip()}; prune the model again") from None
    model.tie_weights()
    empty = [name for name, p in model.named_parameters() if p.is_meta]
    if unexpected or empty:
        raise InputError(f"{place} lacks {(empty or missing)[:1]} or holds {unexpected[:1]}: prune again")
