"""The names of sliced models in transformers: what reads a config of theirs brings the classes. Importing this module
registers the names, and is light: it is done while transformers itself is still being imported.
"""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma")
"""Model types whose attention is q, k, v, o projections with rotary embeddings in halves, and whose MLP is gated."""
PREFIX = "eckart_"


def _name(family: str) -> type[Any]:
    """A config class that stands for the one of this family until it is read."""

    def from_dict(_: type[Any], values: dict[str, Any], /, **options: Any) -> Any:
        from eckart.compression._sliced import config_of

        return config_of(family).from_dict(values, **options)

    body = {"model_type": f"{PREFIX}{family}", "from_dict": classmethod(from_dict)}
    return type(f"Eckart{family.capitalize()}Name", (PreTrainedConfig,), body)


for _family in FAMILIES:
    AutoConfig.register(f"{PREFIX}{_family}", _name(_family), exist_ok=True)
