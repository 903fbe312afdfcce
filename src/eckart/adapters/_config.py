"""The options of a method: what every config has, how it counts, and how it builds the adapter of a layer."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from jaxtyping import Float
from torch import Tensor, nn

from eckart.adapters._layers import LayerContext, LayerShape
from eckart.adapters._method import MethodConfig
from eckart.arguments import check_number, check_pattern
from eckart.errors import InputError

if TYPE_CHECKING:
    from eckart.adapters._base import Adapter

Route = Literal["auto", "factored", "folded"]


def find_pattern(patterns: Collection[str], name: str) -> str | None:
    """The key of a `rank_pattern` that a layer's name has, or whose regular expression fits the end of it."""
    if name in patterns:
        return name
    return next((pattern for pattern in patterns if re.fullmatch(rf"(.*\.)?({pattern})", name)), None)


@dataclass
class AdapterConfig(MethodConfig):
    """Options that every adapter of layers has. A method adds its own and says how to build its adapter.

    Args:
        target_modules: names (or one regular expression) of the layers to adapt, or ``"all-linear"``.
        exclude_modules: names (or one regular expression) never adapted.
        trainable_token_indices: tokens whose rows of the embedding train: their indices, or these by the name of the
            embedding.
        layers_to_transform: indices of the blocks to adapt; all when None.
        layers_pattern: name of the list of blocks, when ``layers_to_transform`` is given.
        dropout: probability of zeroing an input element of the adapter's branch while training.
        route: ``"factored"`` (x through the factors), ``"folded"`` (one product with W₀ + ΔW) or ``"auto"``.
        save_basis: also store the frozen tensors that are otherwise rebuilt from the seed or the base weight.
        rank_pattern: ranks of layers that differ from ``r``, by name or by a regular expression of its end. Like
            ``r``, each is a cap: a layer takes no more than it can hold.
        target_parameters: names of parameters that their module multiplies by without a layer, such as
            ``"experts.down_proj"``: matrices, or stacks of them, of which each has an adapter of its own.

    Raises:
        InputError: an option outside its range.
    """

    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    dropout: float = 0.0
    route: Route = "auto"
    save_basis: bool = False
    rank_pattern: dict[str, int] | None = None
    target_parameters: list[str] | None = None
    base_check: dict[str, list[float]] | None = field(default=None, compare=False, repr=False)

    saved_check = cast("dict[str, list[float]] | None", None)  # no field: set on a config that is being saved

    default_r: ClassVar[int] = 8
    needs_base: ClassVar[bool] = False  # ΔW or its frozen factors depend on the base weight
    checks: ClassVar[tuple[str, ...]] = ()  # saved buffers that rebuilt factors are held to
    zero_at_start: ClassVar[bool] = True  # ΔW = 0 before the first step
    any_rank: ClassVar[bool] = False  # a rank above min(out, in) has a use
    monotone: ClassVar[bool] = True  # the count never turns back along `knob_values`
    exact_gradient: ClassVar[Mapping[str, Any]] = {}  # options with which no part of ΔW is held constant
    peft_types: ClassVar[tuple[str, ...]] = ()  # PEFT's own types that `read_peft` reads

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_modules", "exclude_modules"):
            if isinstance(value := getattr(self, name), list):
                setattr(self, name, set(value))
        if self.route not in ("auto", "factored", "folded"):
            raise InputError(f"route is {self.route!r}: give 'auto', 'factored' or 'folded'")
        if self.rank_pattern and not hasattr(self, "r"):
            raise InputError(f"rank_pattern is given, but {self.slug} has no ranks: leave it out")
        for name in ("target_modules", "exclude_modules", "layers_pattern"):
            check_pattern(name, getattr(self, name))
        pattern_ranks: dict[str, Any] = dict(self.rank_pattern or {})
        for pattern, r in pattern_ranks.items():
            check_pattern("rank_pattern", pattern)
            if isinstance(r, list | tuple):  # of a convolution, in parts
                continue
            try:
                pattern_ranks[pattern] = check_number("r", r, "int")
            except InputError:
                raise InputError(
                    f"rank_pattern of {pattern!r} is {r!r}: give a whole number of at least 1"
                ) from None
        self.rank_pattern = pattern_ranks or None
        if self.target_parameters is not None:
            self._check_parameters()

    def _check_parameters(self) -> None:
        names: Any = self.target_parameters
        if not isinstance(names, list | tuple | set) or not all(isinstance(n, str) and n for n in names):
            raise InputError(f"target_parameters is {names!r}: give a list of names, ['experts.down_proj']")
        for option, value, remedy in (("dropout", self.dropout, "0"), ("route", self.route, "'folded'")):
            if value and value not in ("auto", "folded"):
                raise InputError(
                    f"{option} is {value!r}, and target_parameters have no branch beside the weight: give {remedy}"
                )
        self.target_parameters = sorted(names) or None

    def _check_numbers(self) -> None:
        super()._check_numbers()
        r = getattr(self, "r", None)  # a method may take a list of them
        if r is not None and not isinstance(r, list | tuple):
            self.r = check_number("r", r, "int")

    @classmethod
    def for_task(cls, *, target_modules: str | list[str], max_length: int) -> dict[str, Any]:
        return {"target_modules": target_modules}

    @property
    def kept_whole(self) -> Collection[str]:
        return () if self.save_basis else self.checks

    def rank(self, shape: LayerShape) -> int:
        """The rank for one layer: what `rank_pattern` says for its name, else ``r``, else the method's default; never
        more than ``min(out, in)`` unless the method has a use for more."""
        r = self.pattern(shape)
        if r is None:
            r = getattr(self, "r", None)
        if r is None:
            return min(self.default_r, shape.max_rank)
        return int(r) if self.any_rank else min(int(r), shape.max_rank)

    def pattern(self, shape: LayerShape) -> int | None:
        """What `rank_pattern` says for a layer, or for a matrix or its whole stack; None where it says nothing."""
        if not (patterns := self.rank_pattern):
            return None
        keys = (find_pattern(patterns, name) for name in (shape.name, shape.target) if name)
        return next((patterns[key] for key in keys if key is not None), None)

    def alike(self, shapes: Sequence[LayerShape]) -> list[tuple[LayerShape, int]]:
        """One layer for each shape and `pattern`, and how many such layers there are."""
        found: dict[object, list[LayerShape]] = {}
        for shape in shapes:
            found.setdefault((shape.weight, self.pattern(shape)), []).append(shape)
        return [(same[0], len(same)) for same in found.values()]

    def check(self, shape: LayerShape) -> None:
        """Refuse a layer this config cannot adapt; called for every layer before any is changed.

        Raises:
            InputError: naming the layer and the remedy.
        """
        self.rank(shape)

    def knob_values(self, shapes: Sequence[LayerShape]) -> Iterable[Any]:
        """The values of the knob that differ on these layers, in the order of their counts."""
        return range(1, max(shape.max_rank for shape in shapes) + 1)

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        """How many numbers train over these layers, from the method's formula. Where the count depends on the weight
        itself, `LayerShape.matrix` gives it."""
        raise NotImplementedError

    def saved_bytes(self, shapes: Sequence[LayerShape]) -> int:
        """Bytes of the tensors a float32 checkpoint holds: 4 for each trained number unless the method adds some."""
        return 4 * self.trainable_parameters(shapes)

    def build(self, weight: Float[Tensor, "out in"], layer: LayerContext) -> Adapter:
        """The adapter of one layer.

        Args:
            weight: the frozen matrix, dequantised, in the dtype of the base layer. Never modified.
            layer: name, shape, kind, seed and the shared pool.
        """
        raise NotImplementedError

    @classmethod
    def read_peft(
        cls, saved: dict[str, Any], tensors: dict[str, Tensor], base: nn.Module
    ) -> tuple[AdapterConfig, dict[str, Tensor]]:
        """A checkpoint of one of ``peft_types`` as a config of this method and its tensors; see `from_peft`.

        Args:
            saved: what its adapter_config.json says.
            tensors: its tensors by PEFT's names.
            base: the model it is for.
        """
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are written to adapter_config.json."""
        return {
            **super().to_dict(),
            "base_check": self.base_check if self.saved_check is None else self.saved_check,
        }
