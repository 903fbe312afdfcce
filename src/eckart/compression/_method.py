"""The contract of a method, and what those that factorise one layer at a time have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from eckart.arguments import check_attributes, check_least, check_number, check_pattern
from eckart.compression._calibration import Observed
from eckart.compression._census import Outline, matrix_shape, weight_matrix
from eckart.compression._kinds import build_layer
from eckart.compression._layers import FactorizedLinear, Spec
from eckart.errors import InputError
from eckart.linalg.moments import Moments
from eckart.linalg.whitened import Factors, output_error

ALIGNED_FROM = 64
"""From this rank on, ranks are multiples of eight unless ``multiple_of`` says otherwise."""


class LayerRow(NamedTuple):
    """What was done to one layer.

    ``rank`` is that of the factors or the width that is left, None for a layer that stayed dense; ``error`` is
    relative, of the layer's outputs on the calibration data where there are any, otherwise of its weight.
    """

    layer: str
    kind: str
    out_features: int
    in_features: int
    rank: int | None
    parameters_before: int
    parameters_after: int
    error: float


class Change(NamedTuple):
    """A module that takes the place of another, and its spec."""

    module: nn.Module
    spec: Spec


@dataclass
class Compressor:
    """Options that every method has.

    Args:
        exclude: regular expressions of layers that stay as they are: whole names, or ends of names after a dot.

    Raises:
        InputError: an option outside its range.
    """

    exclude: Sequence[str] = ()

    slug: ClassVar[str] = ""
    calibrated: ClassVar[bool] = True  # needs calibration data
    influenced: ClassVar[bool] = False  # needs the influence of every block before the first is changed
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)
    instead: ClassVar[tuple[str, ...]] = ()  # options that say how much to remove in place of a ratio

    def __post_init__(self) -> None:
        check_attributes(self, type(self).__init__)
        if isinstance(self.exclude, str):
            self.exclude = (self.exclude,)
        words = self.exclude if isinstance(self.exclude, Collection) else [None]
        if not all(isinstance(pattern, str) for pattern in words):
            raise InputError(f"exclude is {self.exclude!r}: give regular expressions for names of layers")
        for pattern in self.exclude:
            check_pattern("exclude", pattern)

    def check_size(self, ratio: float | None, budget: str | int | None) -> None:
        """Refuse a method that is told nothing, or two things, of how much to remove.

        Raises:
            InputError: naming them.
        """
        asked = {"ratio": ratio, "budget": budget, **{name: getattr(self, name) for name in self.instead}}
        given = [f"{name} ({value})" for name, value in asked.items() if value is not None]
        if not given:
            others = "".join(f", {name}" for name in self.instead)
            raise InputError(
                f"ratio is not given: say how much to remove, such as ratio=0.2, or give one of budget{others}"
            )
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} are both given: leave one out")

    def check(self, outline: Outline) -> None:
        """Refuse a model that the method does not fit; nothing has been changed yet.

        Raises:
            InputError: saying what would be needed.
        """

    def plan(self, outline: Outline, ratio: float | None, influence: Sequence[float]) -> None:
        """Decide what has to be known of all layers before the first is changed.

        Args:
            outline: the model.
            ratio: share of the layers' parameters to remove; None where an option of the method says how much.
            influence: of each block, where ``influenced``.
        """
        raise NotImplementedError

    @property
    def adds_bias(self) -> bool:
        """Whether layers without a bias get one."""
        return False

    @property
    def steps(self) -> int:
        """Of the training that belongs to the method."""
        return 0

    def train(
        self, model: nn.Module, batches: Sequence[Any], progress: Callable[[int, int], None]
    ) -> list[float]:
        """That training, of a model that `compress` has changed; the loss of each step."""
        raise NotImplementedError

    def watched(self, block: str, outline: Outline) -> dict[str, nn.Module]:
        """The layers of a block whose inputs have to be observed, by full name."""
        return outline.inside(block)

    def rebuild(self, spec: Spec, dense: nn.Module) -> nn.Module:
        """A module of this spec in place of a dense one, its numbers not yet set."""
        weight: Tensor = dense.weight  # type: ignore[assignment]
        return build_layer(spec, weight.device, weight.dtype)

    def compress(
        self, block: str, outline: Outline, observed: Mapping[str, Observed]
    ) -> tuple[dict[str, Change], list[LayerRow]]:
        """What replaces the modules of one block, by full name, and a row for every layer of it."""
        raise NotImplementedError

    def finish(self, model: nn.Module, specs: Mapping[str, Spec]) -> None:
        """Make the model say what it is, so that it can be saved and loaded."""
        from eckart.compression._saving import mark

        mark(model, self.slug, specs)

    def options(self) -> dict[str, Any]:
        """All options by name, as JSON holds them."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in dataclasses.fields(self)
            if field.init and not isinstance(value := getattr(self, field.name), nn.Module)
        }


@dataclass
class FactorCompressor(Compressor):
    """Methods that put two thin layers in the place of one.

    Args:
        rank: the same rank for every layer, instead of a ratio.
        ranks: ranks by end of name, such as ``{"down_proj": 128}``; the others follow the ratio, or stay dense.
        multiple_of: round ranks down to multiples of this; None takes 8, and leaves ranks below 64 as they are.
    """

    rank: int | None = None
    ranks: Mapping[str, int] | None = None
    multiple_of: int | None = None

    instead: ClassVar[tuple[str, ...]] = ("rank",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(1, multiple_of=self.multiple_of)
        if not isinstance(self.ranks or {}, Mapping):
            raise InputError(f"ranks is {self.ranks!r}: give a mapping from ends of layer names to ranks")
        for name, value in (self.ranks or {}).items():
            try:
                check_number("rank", value, "int")
            except InputError as error:
                raise InputError(f"ranks of {name!r}: {error}") from None
        self._planned: dict[str, int] = {}

    def check_size(self, ratio: float | None, budget: str | int | None) -> None:
        if self.ranks is None or any(given is not None for given in (ratio, budget, self.rank)):
            super().check_size(ratio, budget)

    def check(self, outline: Outline) -> None:
        for end in self.ranks or {}:
            if not any(_ends(name, end) for name in outline.layers):
                raise InputError(
                    f"ranks names {end!r}, which no layer ends with: layers are such as {next(iter(outline.layers))}"
                )

    def plan(self, outline: Outline, ratio: float | None, influence: Sequence[float]) -> None:
        self._planned = {}
        for name, layer in outline.layers.items():
            rank = self._rank(name, matrix_shape(layer), ratio)
            if rank is not None and saves(matrix_shape(layer), rank):
                self._planned[name] = rank
        self._refuse_nothing(outline, ratio)

    def _refuse_nothing(self, outline: Outline, ratio: float | None) -> None:
        if not self._planned:
            name, layer = next(iter(outline.layers.items()))
            wanted = f"ratio is {ratio}" if ratio is not None else f"rank is {self.rank or self.ranks}"
            raise InputError(
                f"{wanted}: no rank meets it, layer {name} {matrix_shape(layer)} saves below rank "
                f"{largest_rank(matrix_shape(layer)) + 1} only, and needs rank 1 at least"
            )

    def _rank(self, name: str, shape: tuple[int, int], ratio: float | None) -> int | None:
        given = next((int(r) for end, r in (self.ranks or {}).items() if _ends(name, end)), None)
        if given is None and self.rank is None:
            return None if ratio is None else rank_for_ratio(shape, ratio, self.multiple_of)
        return min(given or self.rank or 1, *shape)

    def compress(
        self, block: str, outline: Outline, observed: Mapping[str, Observed]
    ) -> tuple[dict[str, Change], list[LayerRow]]:
        changes, rows = {}, []
        for name, layer in outline.inside(block).items():
            moments = observed.get(name)
            new = self.replace(name, layer, moments)
            weight: Tensor = layer.weight  # type: ignore[assignment]
            before = weight.numel() + (0 if getattr(layer, "bias", None) is None else layer.bias.numel())  # type: ignore[operator]
            if new is None:
                rows.append(LayerRow(name, "dense", *matrix_shape(layer), None, before, before, 0.0))
                continue
            module, error = new
            changes[name] = Change(module, module.spec)
            after = sum(p.numel() for p in module.parameters())
            rows.append(LayerRow(name, module.kind, *matrix_shape(layer), module.rank, before, after, error))
        return changes, rows

    def replace(self, name: str, layer: nn.Module, observed: Observed | None) -> tuple[Any, float] | None:
        """The layer that takes another's place and its relative error, or None where the other stays."""
        rank = self._planned.get(name)
        if rank is None:
            return None
        moments = observed if isinstance(observed, Moments) else None
        weight, bias = weight_matrix(layer), getattr(layer, "bias", None)
        factors = self.factors(weight, bias, rank, moments)
        return FactorizedLinear.of(factors, weight), relative_error(weight, bias, factors, moments)

    def factors(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        rank: int,
        moments: Moments | None,
    ) -> Factors:
        """The factors of one layer.

        Args:
            weight: W.
            bias: b, or None.
            rank: k.
            moments: of the layer's inputs, where the method is ``calibrated``.
        """
        raise NotImplementedError


def _ends(name: str, end: str) -> bool:
    """Whether this is a layer's whole name, or the end of it after a dot."""
    return name == end or name.endswith(f".{end}")


def saves(shape: tuple[int, int], rank: int) -> bool:
    """Whether two factors of this rank take fewer multiply–adds than the matrix: k (in + out) < in · out."""
    return rank * sum(shape) < shape[0] * shape[1]


def largest_rank(shape: tuple[int, int]) -> int:
    """The largest rank that saves; 0 where none does."""
    return max((shape[0] * shape[1] - 1) // sum(shape), 0)


def rank_for_ratio(shape: tuple[int, int], ratio: float, multiple_of: int | None = None) -> int | None:
    """k = ⌊(1 − ratio) in·out/(in + out)⌋, then down to a multiple; None where that is no rank.

    Args:
        shape: (out, in).
        ratio: share of the matrix's parameters to remove, in (0, 1).
        multiple_of: None takes 8 from rank 64 on.
    """
    rank = int((1 - ratio) * shape[0] * shape[1] / sum(shape) + 1e-9)
    step = multiple_of or (8 if rank >= ALIGNED_FROM else 1)
    return rank // step * step or None


def relative_error(
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    factors: Factors,
    moments: Moments | None,
) -> float:
    """√(E‖y − ŷ‖² / E‖y‖²) over the inputs, or ‖W − BA‖_F/‖W‖_F where there are none."""
    if moments is None:
        wide = weight.double()
        return root_share((wide - factors.product).square().sum(), wide.square().sum())
    nothing = Factors(
        weight.new_zeros(1, weight.shape[1]).double(), weight.new_zeros(len(weight), 1).double(), None
    )
    whole = output_error(weight, bias, nothing, moments)
    return root_share(output_error(weight, bias, factors, moments), whole)


def root_share(lost: float | Tensor, whole: float | Tensor) -> float:
    """√(lost/whole), and 0 where there was nothing to lose."""
    return float(max(float(lost), 0.0) / whole) ** 0.5 if whole > 0 else 0.0
