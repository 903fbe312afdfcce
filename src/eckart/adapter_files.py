"""The files of an adapter, found in a directory or on the hub and read without PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eckart.errors import InputError
from eckart.hub import local_directory

CONFIG_NAME = "adapter_config.json"
PREPROCESSING = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "chat_template*",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""Files of a tokenizer or image processor."""


def read_adapter_config(adapter: str | Path) -> tuple[Path, dict[str, Any]]:
    """The directory of an adapter checkpoint and what its adapter_config.json says.

    Raises:
        InputError: no adapter there, or a damaged file.
    """
    directory = local_directory(adapter, (CONFIG_NAME, "*.safetensors"))
    path = directory / CONFIG_NAME
    if not path.is_file():
        raise InputError(f"adapter {adapter} has no {CONFIG_NAME}: give the directory of a finished adapter")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}): save or copy the adapter again") from None
    if not isinstance(config, dict) or "peft_type" not in config:
        raise InputError(f"{path} is no adapter configuration: it names no peft_type")
    return directory, config


def base_model(model: str | Path | None, adapter: str | Path, config: dict[str, Any]) -> str | Path:
    """The base model that was given, or that the adapter's configuration names.

    Raises:
        InputError: neither.
    """
    model = model or config.get("base_model_name_or_path")
    if not model:
        raise InputError(f"adapter {adapter} does not name its base model: give it with --model")
    return model
