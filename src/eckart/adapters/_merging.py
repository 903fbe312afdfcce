"""Merging: the weights of a model with those of an adapter, from files to files."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

from eckart.adapter_files import PREPROCESSING, base_model, read_adapter_config
from eckart.adapters._adapted import AdaptedWeight
from eckart.adapters._loading import load_adapted
from eckart.errors import InputError, first_line
from eckart.files import atomic_directory, check_apart, check_output, locked
from eckart.hub import local_directory

OWNED = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    *PREPROCESSING,
)
"""Files of a model that a merge replaces."""


@dataclass(frozen=True)
class MergeReport:
    """What `merge_checkpoint` wrote."""

    path: str
    model: str
    adapter: str
    layers: int
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def merge_checkpoint(
    model: str | Path | None, adapter: str | Path, output: str | Path, *, overwrite: bool = False
) -> MergeReport:
    """Save the model with W + ΔW for its weights, in the base's own dtype, with the files of its tokenizer (those
    beside the adapter where there are some) and the vocabulary that the checkpoint has.

    Tied weights of which one was adapted are no longer tied, so that the outputs stay those of the adapter.

    Args:
        model: directory or hub name of the base model; what the adapter's configuration names when None.
        adapter: directory or hub name of the adapter.
        output: the directory to write.
        overwrite: replace what is there.

    Raises:
        InputError: as `load_adapted`; a merged weight that is not finite; a directory that is not empty.
    """
    check_output(output, overwrite=overwrite)
    _, config = read_adapter_config(adapter)
    model = base_model(model, adapter, config)
    check_apart(Path(output), {"ADAPTER": adapter, "the base model": model})
    adapted = load_adapted(model, adapter)
    found = [(name, m) for name, m in adapted.named_modules() if isinstance(m, BaseTunerLayer)]
    layers = len({m.shape.target if isinstance(m, AdaptedWeight) else name for name, m in found})
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise InputError(f"adapter {adapter} cannot be merged into {model}: {first_line(error)}") from None
    with locked(output), atomic_directory(output, overwrite=overwrite, owned=OWNED) as folder:
        merged.save_pretrained(folder)
        for source in (
            model,
            adapter,
        ):  # a tokenizer that was saved with the adapter has the tokens that were added
            copy_preprocessing(source, folder)
    return MergeReport(
        str(output), str(model), str(adapter), layers, str(merged.dtype).removeprefix("torch.")
    )


def copy_preprocessing(model: str | Path, folder: Path) -> None:
    """Copy the files of a model's tokenizer or image processor, whichever there are."""
    source = local_directory(model, PREPROCESSING)
    for file in {file for pattern in PREPROCESSING for file in source.glob(pattern) if file.is_file()}:
        shutil.copy(file, folder)
