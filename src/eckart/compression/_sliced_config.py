"""The names of sliced models in transformers: what reads a config of theirs brings the classes. Importing this module
registers the names, and is light: it is done while transformers itself is still being imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig


@dataclass(frozen=True)
class Layout:
    """Where a block of a family has its projections.

    Attributes:
        attention: name of the attention in the block.
        inputs: names in it of the query, key and value projections, or of the one that holds all three.
        output: name in it of the output projection.
        up: names in the block of the projections into the MLP's hidden units.
        down: name in the block of the projection out of them.
        rotary: whether queries and keys are rotated, in halves.
    """

    attention: str = "self_attn"
    inputs: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    output: str = "o_proj"
    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    rotary: bool = True

    @property
    def projections(self) -> tuple[str, ...]:
        """Names in the block of the attention's projections."""
        return tuple(f"{self.attention}.{name}" for name in (*self.inputs, self.output))


LLAMA = Layout()
FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), LLAMA),
    "opt": Layout(output="out_proj", up=("fc1",), down="fc2", rotary=False),
    "gpt2": Layout("attn", ("c_attn",), "c_proj", ("mlp.c_fc",), "mlp.c_proj", rotary=False),
}
"""Model types that can be sliced."""
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
