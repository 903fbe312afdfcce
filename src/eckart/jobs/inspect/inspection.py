"""Spectra of a model's weights, one layer in memory at a time: how much rank each layer really uses."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.adapters._layers import describe_layer
from eckart.errors import InputError
from eckart.escapes import named_cells
from eckart.files import atomic_directory, locked
from eckart.linalg import spectrum
from eckart.tasks.pretrained import EMBEDDED, find_model

_EMBEDDING_NAMES = ("embed", "wte", "wpe", "shared.weight", "relative_attention_bias")


@dataclass(frozen=True)
class LayerSpectrum:
    """What one weight's singular values say.

    Attributes:
        name: the tensor's name; ``name[i]`` for the i-th matrix of a stack.
        kind: ``"linear"``, ``"conv"`` or ``"embedding"``.
        shape: rows and columns as stored; a convolution's input channels and kernel elements are its columns.
        effective_rank: entropy rank of the singular values.
        stable_rank: ‖W‖_F² / ‖W‖₂².
        ranks: energy share -> smallest rank that holds it.
        alpha: exponent of the power law in the tail of the eigenvalues of WᵀW, NaN where none could be fitted.
        alpha_error: standard error of ``alpha``.
        nearly_low_rank: factors that hold the asked energy need at most half of the weight's numbers.
        singular_values: in falling order.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    effective_rank: float
    stable_rank: float
    ranks: Mapping[float, int]
    alpha: float
    alpha_error: float
    nearly_low_rank: bool
    singular_values: Float[Tensor, " k"] = field(repr=False)

    @classmethod
    def of(cls, name: str, kind: str, matrix: Float[Tensor, "rows columns"], energy: float) -> LayerSpectrum:
        """Measure one matrix.

        Raises:
            InputError: a NaN or Inf in it.
        """
        matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
        if broken := matrix.numel() - int(torch.isfinite(matrix).sum()):
            raise InputError(
                f"weight {name} holds {broken} NaN or Inf: repair the checkpoint or leave the layer out"
            )
        rows, columns = matrix.shape
        s = spectrum.singular_values(matrix)
        ranks = {e: int(spectrum.rank_within(s, math.sqrt(1 - e))) for e in sorted({0.9, 0.99, energy})}
        tail = spectrum.heavy_tail_exponent(s)
        return cls(
            name=name,
            kind=kind,
            shape=(rows, columns),
            effective_rank=spectrum.effective_rank(s).item(),
            stable_rank=spectrum.stable_rank(s).item(),
            ranks=ranks,
            alpha=tail.alpha.item(),
            alpha_error=(tail.alpha.item() - 1) / math.sqrt(max(tail.tail.item(), 1)),
            nearly_low_rank=2 * ranks[energy] * (rows + columns) <= rows * columns,
            singular_values=s.cpu(),
        )

    def row(self) -> dict[str, Any]:
        """The numbers as one flat row; None for an exponent that could not be fitted."""
        fitted = not math.isnan(self.alpha)
        return {
            "name": self.name,
            "kind": self.kind,
            "rows": self.shape[0],
            "columns": self.shape[1],
            "max_rank": min(self.shape),
            "effective_rank": round(self.effective_rank, 3),
            "stable_rank": round(self.stable_rank, 3),
            **{f"rank_{100 * energy:g}": rank for energy, rank in self.ranks.items()},
            "alpha": round(self.alpha, 4) if fitted else None,
            "alpha_error": round(self.alpha_error, 4) if fitted else None,
            "nearly_low_rank": self.nearly_low_rank,
        }

    def curve(self, points: int = 120) -> list[tuple[float, float]]:
        """Share of the energy that the leading singular values hold, at no more than so many shares of the rank."""
        energy = spectrum.energy_curve(self.singular_values)
        last = energy.numel() - 1
        picks = torch.linspace(0, last, min(last + 1, points)).round().long().tolist()
        return [(i / last, energy[i].item()) for i in picks]


@dataclass(frozen=True)
class Inspection:
    """The spectra of one model, in the order of its weights.

    Attributes:
        model: its name or path.
        energy: the energy share that ``nearly_low_rank`` is about.
        layers: one spectrum per weight.
        skipped: matrices stored as integers (quantised), which were not read.
    """

    model: str
    energy: float
    layers: list[LayerSpectrum]
    skipped: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the singular values, ready for JSON."""
        return {
            "model": self.model,
            "energy": self.energy,
            "layers": [layer.row() for layer in self.layers],
            "skipped": self.skipped,
        }

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write spectra.csv, spectra.svg, inspect.json and singular_values.safetensors, all or none of them."""
        from safetensors.torch import save_file

        from eckart.jobs.inspect.picture import draw

        with locked(directory), atomic_directory(directory, overwrite=overwrite) as folder:
            rows = [layer.row() for layer in self.layers]
            with (folder / "spectra.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(map(named_cells, rows))
            (folder / "inspect.json").write_text(
                json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8"
            )
            curves = {layer.name: layer.curve() for layer in self.layers}
            picture = draw(self.model, self.energy, rows, curves)
            (folder / "spectra.svg").write_text(picture, encoding="utf-8")
            save_file(
                {layer.name: layer.singular_values for layer in self.layers},
                folder / "singular_values.safetensors",
            )
        return Path(directory)


def inspect_model(
    model: str | Path | nn.Module | None = None,
    *,
    energy: float = 0.9,
    on_layer: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Effective and stable rank, energy ranks and tail exponent of every linear, convolution and embedding weight.

    A weight is *nearly low-rank* when r·(rows + columns) ≤ ½·rows·columns for the smallest rank r that holds
    ``energy`` of ‖W‖_F²: two factors of that rank need at most half the numbers (and multiply–adds) of the weight.

    Args:
        model: a model directory, a ``.safetensors`` file, a name on the hub, a model in memory, or None for the
            built-in MiniLM. Files are read one weight at a time; nothing but safetensors is read.
        energy: the share of ‖W‖_F² that counts as "the" weight, in (0, 1).
        on_layer: called after every weight with how many are done and how many there are.

    Raises:
        InputError: no such model, a damaged file, no weight to inspect, or NaN or Inf in a weight (named).
    """
    if not 0 < energy < 1:
        raise InputError(f"energy is {energy}: give a share between 0 and 1, such as 0.9")
    found = _in_memory(model) if isinstance(model, nn.Module) else _in_files(model)
    weights = sorted(found, key=lambda w: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", w.name)])
    skipped = [weight.name for weight in weights if not weight.floating]
    weights = [weight for weight in weights if weight.floating]
    name = type(model).__name__ if isinstance(model, nn.Module) else EMBEDDED if model is None else str(model)
    if not weights:
        raise InputError(f"{name} holds no floating-point weight of a linear, convolution or embedding layer")
    layers = []
    for done, weight in enumerate(weights, start=1):
        layers.append(LayerSpectrum.of(weight.name, weight.kind, weight.read(), energy))
        if on_layer is not None:
            on_layer(done, len(weights))
    return Inspection(name, energy, layers, skipped)


class _Weight(NamedTuple):
    name: str
    kind: str
    floating: bool
    read: Callable[[], Tensor]


def _in_memory(model: nn.Module) -> Iterator[_Weight]:
    for name, module in model.named_modules():
        described, weight = describe_layer(module, name), getattr(module, "weight", None)
        if described is not None and weight is not None and described[0].max_rank > 1:
            matrix = partial(weight.detach().reshape, weight.shape[0], -1)
            yield _Weight(f"{name}.weight".lstrip("."), described[0].kind, weight.is_floating_point(), matrix)


def _in_files(model: str | Path | None) -> Iterator[_Weight]:
    from safetensors import SafetensorError, safe_open

    for file in _safetensors_files(model):
        try:
            with safe_open(file, "pt") as tensors:
                slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
                headers = {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{file} is no readable safetensors file ({error}): fetch or save it again"
            ) from None
        for name, (shape, dtype) in headers.items():
            yield from _matrices(file, name, shape, floating="F" in dtype)


def _matrices(file: Path, name: str, shape: list[int], floating: bool) -> Iterator[_Weight]:
    """The matrices of one tensor: itself, or the members of a stack (3-d and not a layer's ``.weight``)."""
    stack = len(shape) == 3 and not name.endswith(".weight")
    rows, *rest = (shape[1:] if stack else shape) or (1,)
    if min(rows, math.prod(rest)) < 2:
        return
    embedding = any(part in name for part in _EMBEDDING_NAMES)
    kind = "embedding" if embedding else "conv" if len(rest) > 1 else "linear"
    if not stack:
        yield _Weight(name, kind, floating, partial(_read, file, name))
        return
    for index in range(shape[0]):
        yield _Weight(f"{name}[{index}]", kind, floating, partial(_read, file, name, index))


def _read(file: Path, name: str, index: int | None = None) -> Tensor:
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        tensor: Tensor = tensors.get_tensor(name) if index is None else tensors.get_slice(name)[index]
    return tensor.reshape(tensor.shape[0], -1)


def _safetensors_files(model: str | Path | None) -> list[Path]:
    path = None if model is None else Path(model)
    if path is not None and path.is_file():
        return [path]
    if path is None or not path.is_dir():
        path = find_model(model).directory
    if (index := path / "model.safetensors.index.json").is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError) as error:
            raise InputError(f"{index} is damaged ({error!r}): fetch or save the model again") from None
        if missing := sorted(name for name in names if not (path / name).is_file()):
            raise InputError(
                f"{path} lacks {', '.join(missing)}, which its index names: fetch the model again"
            )
        return [path / name for name in sorted(names)]
    if files := sorted(path.glob("*.safetensors")):
        return files
    raise InputError(
        f"{path} holds no safetensors file, and nothing else is read: save it with save_pretrained"
    )
