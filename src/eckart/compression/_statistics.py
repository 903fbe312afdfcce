"""Statistics of a dense model gathered once and used by many compressions: the same for all methods and ratios."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eckart.compression._calibration import Observed, Trace
from eckart.compression._census import Outline, census, in_mode
from eckart.errors import InputError, first_line
from eckart.files import atomic_directory
from eckart.linalg.moments import Moments

INDEX = "statistics.json"


class Statistics:
    """The moments of what enters every linear layer of a model, one file for each block.

    Args:
        directory: what `gather` wrote.

    Raises:
        InputError: it holds no statistics.
    """

    def __init__(self, directory: str | PathLike[str]) -> None:
        self.place = Path(directory)
        try:
            found = json.loads((self.place / INDEX).read_text("utf-8"))
            self.layers: dict[str, str] = found["layers"]
            self.influence: list[float] = found["influence"]
            self.weights: dict[str, float] = found["weights"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{self.place} holds no statistics that can be read: {error}") from None

    def check(self, outline: Outline) -> None:
        """Refuse a model that these statistics are not of.

        Raises:
            InputError: another model.
        """
        for name, layer in outline.layers.items():
            if self.weights.get(name) != weight_sum(layer):
                raise InputError(
                    f"the statistics in {self.place} are not of this model (layer {name}): gather them again"
                )

    def observe(
        self, index: int, layers: Mapping[str, nn.Module], advance: bool = True
    ) -> dict[str, Observed]:
        """The moments of these layers of a block, as `Trace.observe` gives them; there is nothing to advance."""
        path = self.place / f"block-{index:04d}.safetensors"
        found: dict[str, Observed] = {}
        try:
            state = load_file(path)
            for name in layers:
                leader = self.layers[name]
                count, mean, scatter = (state[f"{leader}/{part}"] for part in ("count", "mean", "scatter"))
                found[name] = Moments(int(count), mean, scatter)
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(
                f"{path} is damaged ({first_line(error)}): gather the statistics again"
            ) from None
        return found

    def advance(self, index: int) -> None:
        """Nothing to do: the statistics are of the dense model."""

    @property
    def marks(self) -> list[float]:
        """What tells these statistics from others, for a run that resumes."""
        return self.influence


@torch.no_grad()
def gather(
    model: nn.Module,
    batches: Iterable[Any],
    directory: str | PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Run a dense model over calibration data once, and keep the statistics of all its linear layers.

    Args:
        model: as for `eckart.compress`.
        batches: as its ``calibration``.
        directory: where to; about 8 bytes · Σ in² of the layers with inputs of their own.
        progress: called with the number of finished blocks and of all.

    Raises:
        InputError: as `eckart.compress`, or a directory that is not empty.
    """
    outline = census(model, (nn.Linear,))
    with in_mode(model, False), atomic_directory(directory) as place:
        trace = Trace(outline, batches, influence=outline.chained)
        trace.check_called(outline.layers)
        leaders: dict[str, str] = {}
        for index, block in enumerate(outline.blocks):
            observed = trace.observe(index, outline.inside(block), advance=True)
            own: dict[int, str] = {}
            state: dict[str, Tensor] = {}
            for name, moments in observed.items():
                assert isinstance(moments, Moments)
                leaders[name] = own.setdefault(id(moments), name)
                if leaders[name] == name:
                    parts = {
                        "count": torch.tensor(moments.rows),
                        "mean": moments.mean,
                        "scatter": moments.scatter,
                    }
                    state |= {f"{name}/{part}": value.cpu() for part, value in parts.items()}
            save_file(state, place / f"block-{index:04d}.safetensors")
            if progress is not None:
                progress(index + 1, len(outline.blocks))
        weights = {name: weight_sum(layer) for name, layer in outline.layers.items()}
        index_text = json.dumps({"layers": leaders, "influence": trace.influence, "weights": weights})
        (place / INDEX).write_text(index_text + "\n", "utf-8")
    return Statistics(directory)


def weight_sum(layer: nn.Module) -> float:
    """A number that tells one weight from another."""
    weight: Any = layer.weight
    return float(weight.detach().double().sum())
