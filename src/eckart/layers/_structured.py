"""Layers whose weight has a structure: what all of them share, and the tables of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from eckart.errors import InputError

Layer = TypeVar("Layer", bound="type[StructuredLayer]")
STRUCTURED: dict[str, type[StructuredLayer]] = {}
"""Slug → class of every method: what takes the place of a linear layer."""
PARTS: dict[str, type[StructuredLayer]] = {}
"""Slug → class of what takes the place of other layers under one of these methods."""


def register_layer(slug: str, *, part: bool = False) -> Callable[[Layer], Layer]:
    """Enter a class into `STRUCTURED`, or into `PARTS`."""

    def enter(cls: Layer) -> Layer:
        if slug in STRUCTURED or slug in PARTS:
            raise InputError(f"layer {slug!r} is registered twice: give one of the two another slug")
        cls.slug = slug
        (PARTS if part else STRUCTURED)[slug] = cls
        return cls

    return enter


Key = int
"""A seed of 64 bits, as those that follow from a name are."""


class StructuredLayer(nn.Module):
    """A layer that takes the place of a stock one, and says in JSON what it is.

    Attributes:
        options: of the structure; with the sizes they make an equal layer.
    """

    slug: ClassVar[str]
    options: dict[str, Any]

    @classmethod
    def kinds(cls) -> dict[type[nn.Module], type[StructuredLayer]]:
        """Stock layer → the class that takes its place under this method."""
        return {nn.Linear: cls}

    @classmethod
    def from_module(cls, module: Any, key: int, **options: Any) -> StructuredLayer:
        """The layer that takes a stock layer's place before training.

        Args:
            module: gives sizes, type, device and bias, and what else the structure starts from.
            key: 63 bits that everything random follows from.
            options: of the class.

        Raises:
            InputError: an option out of its range for this layer.
        """
        raise NotImplementedError

    def to_module(self) -> nn.Module:
        """The stock layer that gives the same numbers.

        Raises:
            InputError: there is none.
        """
        raise NotImplementedError

    @classmethod
    def check(cls, in_features: int, out_features: int, **options: Any) -> None:
        """Refuse options that no layer with a weight of this size can have.

        Raises:
            InputError: the option, its value and the remedy.
        """
        raise NotImplementedError

    @classmethod
    def count(cls, in_features: int, out_features: int, **options: Any) -> int:
        """Trained numbers of a layer with a weight of this size, without its bias."""
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        """What makes an equal layer to load into, as JSON: slug, sizes and options."""
        raise NotImplementedError

    def restore(self) -> None:
        """Make again what no checkpoint holds, once the weights are loaded."""


class StructuredLinear(StructuredLayer):
    """y = x Wᵀ + b with a structured W (out, in); with a frozen base, y = x W₀ᵀ + x Wᵀ + b.

    A subclass gives ``branch``, x through its structure, ``structured_weight`` where that is linear, ``from_linear``
    and ``count``. ``options`` are what, with the sizes, make an equal layer.

    Attributes:
        weight: W₀ (out, in), frozen, in the fine-tuning form; None where the layer is trained from scratch.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        finetune: bool,
        options: dict[str, Any],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.options = in_features, out_features, options
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.bias = nn.Parameter(torch.zeros(out_features, **made)) if bias else None
        frozen = torch.zeros(out_features, in_features, **made) if finetune else None
        self.weight = None if frozen is None else nn.Parameter(frozen, requires_grad=False)

    @classmethod
    def from_linear(cls, linear: nn.Linear, key: int, **options: Any) -> StructuredLinear:
        """The layer that takes a linear layer's place before training.

        Args:
            linear: gives sizes, type, device and bias, and what else the structure starts from.
            key: 63 bits that everything random follows from.
            options: of the class.

        Raises:
            InputError: an option out of its range for this layer.
        """
        raise NotImplementedError

    @classmethod
    def from_module(cls, module: Any, key: int, **options: Any) -> StructuredLayer:
        return cls.from_linear(module, key, **options)

    def to_module(self) -> nn.Module:
        return self.to_linear()

    def branch(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """x through the structure, without base and bias."""
        raise NotImplementedError

    def structured_weight(self) -> Float[Tensor, "out in"]:
        """The matrix of `branch`, in float32 or wider.

        Raises:
            InputError: the branch is not linear.
        """
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """y = x W_effᵀ + b."""
        if x.shape[-1] != self.in_features:
            raise InputError(f"x has {x.shape[-1]} features, the layer takes {self.in_features}")
        y = self.branch(x)
        bias = None if self.bias is None else self.bias.to(y.dtype)
        if self.weight is not None:
            return y + F.linear(x, self.weight, self.bias)
        return y if bias is None else y + bias

    @torch.no_grad()
    def dense_weight(self) -> Float[Tensor, "out in"]:
        """W_eff, in float32 or wider.

        Raises:
            InputError: the layer is not linear.
        """
        weight = self.structured_weight()
        return weight if self.weight is None else weight + self.weight

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """An `nn.Linear` that gives the same numbers.

        Raises:
            InputError: the layer is not linear.
        """
        weight = self.dense_weight()
        like = next(self.parameters())
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device=like.device, dtype=like.dtype
        )
        linear.weight.copy_(weight)
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return linear

    def spec(self) -> dict[str, Any]:
        sizes = {"in_features": self.in_features, "out_features": self.out_features}
        return {"method": self.slug, **sizes, "bias": self.bias is not None, **self.options}

    def extra_repr(self) -> str:
        """Sizes and options."""
        shown = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {shown}"


def build_layer(
    spec: dict[str, Any], device: torch.device | None = None, dtype: torch.dtype | None = None
) -> StructuredLayer:
    """The layer that a spec describes, its values to be loaded.

    Raises:
        InputError: the spec is of a method that is not known here, or none.
    """
    given = dict(spec)
    slug = given.pop("method", None)
    known = STRUCTURED | PARTS
    if slug not in known:
        raise InputError(f"structured layer {slug!r} is not known: choose one of {', '.join(known)}")
    try:
        return known[slug](**given, device=device, dtype=dtype)
    except TypeError as error:
        raise InputError(f"layer spec {spec} is damaged ({error}): restore the config") from None


def sides(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a stock layer's weight as a matrix; a convolution's is (out, in · height · width)."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight[0].numel(), len(weight)


def cast_for(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All of them in the type of autocast where it is on, else in their own common type."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        return tuple(t.to(dtype) for t in (x, *others))
    return (x, *others)


def check_rank(r: int, in_features: int, out_features: int, below: bool = False) -> None:
    """Refuse a rank that a layer of this size has not.

    Args:
        r: the rank.
        in_features, out_features: the layer's sides.
        below: the rank must lie below the shorter side.

    Raises:
        InputError: the rank is above (or at) the shorter side, below 1 or no whole number.
    """
    most = min(in_features, out_features) - below
    if not isinstance(r, int) or not 1 <= r <= most:
        raise InputError(
            f"r={r!r}: a layer of shape ({out_features}, {in_features}) takes a whole number from 1 to {most}"
        )


def check_share(name: str, value: float) -> None:
    """Refuse what is no share between 0 and 1, both excluded.

    Raises:
        InputError: out of range or NaN.
    """
    if not (isinstance(value, int | float) and 0 < value < 1):
        raise InputError(f"{name}={value!r}: give a share above 0 and below 1")
