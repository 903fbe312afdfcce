"""The contract of a method: a config that builds, and an adapter that is ΔW for one frozen weight."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_type_hints

import torch
from jaxtyping import Float
from peft import PeftConfig, PeftType
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eckart.adapters._checkpoint import read_outline
from eckart.adapters._layers import LayerContext, LayerShape
from eckart.errors import InputError

Route = Literal["auto", "factored", "folded"]

_WANTED = {bool: "True or False", float: "a number", int: "a whole number"}


@cache
def _plain_options(config: type[AdapterConfig]) -> dict[str, type]:
    """The fields that hold one number or boolean, or None, with its type."""
    hints = get_type_hints(config)
    kinds = {option.name: hints[option.name] for option in dataclasses.fields(config)}
    plain = {name: next((t for t in _WANTED if kind in (t, t | None)), None) for name, kind in kinds.items()}
    return {name: kind for name, kind in plain.items() if kind is not None}


@dataclass
class AdapterConfig(PeftConfig):
    """Options that every method has. A method adds its own and says how to build its adapter.

    Args:
        target_modules: names (or one regular expression) of the layers to adapt, or ``"all-linear"``.
        exclude_modules: names (or one regular expression) never adapted.
        modules_to_save: further modules trained in full and saved, such as a classification head.
        layers_to_transform: indices of the blocks to adapt; all when None.
        layers_pattern: name of the list of blocks, when ``layers_to_transform`` is given.
        seed: every random number of the adapter follows from it.
        dropout: probability of zeroing an input element of the adapter's branch while training.
        route: ``"factored"`` (x through the factors), ``"folded"`` (one product with W₀ + ΔW) or ``"auto"``.
        init_weights: False starts from random non-zero values, for tests.
        save_basis: also store the frozen tensors that are otherwise rebuilt from the seed or the base weight.

    Raises:
        InputError: an option outside its range.
    """

    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    seed: int = 0
    dropout: float = 0.0
    route: Route = "auto"
    init_weights: bool = True
    save_basis: bool = False
    base_check: dict[str, list[float]] | None = field(default=None, compare=False, repr=False)

    # No field, which would be saved: set on a config read from a checkpoint.
    checkpoint = cast("dict[str, Tensor] | None", None)

    peft_kind: ClassVar[PeftType]

    # What the registry tells of the method.
    slug: ClassVar[str] = ""
    title: ClassVar[str] = ""
    family: ClassVar[str] = "adapters"
    paper: ClassVar[str] = ""
    arxiv: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()
    knob: ClassVar[str] = "r"
    trains: ClassVar[str] = ""
    saves: ClassVar[str] = ""
    learning_rates: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3)
    default_r: ClassVar[int] = 8
    needs_base: ClassVar[bool] = False  # ΔW or its frozen factors depend on the base weight
    checks: ClassVar[tuple[str, ...]] = ()  # saved buffers that rebuilt factors are held to

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = type(self).peft_kind
        for name in ("target_modules", "exclude_modules"):
            if isinstance(value := getattr(self, name), list):
                setattr(self, name, set(value))
        self._check_numbers()
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}: give a probability in [0, 1)")
        if self.route not in ("auto", "factored", "folded"):
            raise InputError(f"route is {self.route!r}: give 'auto', 'factored' or 'folded'")
        r = getattr(self, "r", None)
        if isinstance(r, bool) or (isinstance(r, int | float) and (r < 1 or r != int(r))):
            raise InputError(f"r is {r}: give a whole number of at least 1")

    def _check_numbers(self) -> None:
        """Refuse words, NaN and the like in the options that are plain numbers or booleans."""
        for name, kind in _plain_options(type(self)).items():  # type: ignore[arg-type]  # mypy takes the hash of the instances
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) != (kind is bool) or not isinstance(value, Real) or value != value:
                raise InputError(f"{name} is {value!r}: give {_WANTED[kind]}")

    def rank(self, shape: LayerShape) -> int:
        """The rank for one layer: ``r``, or the method's default lowered to ``min(out, in)`` when r is None.

        Raises:
            InputError: r above ``min(out, in)``.
        """
        r = getattr(self, "r", None)
        if r is None:
            return min(self.default_r, shape.max_rank)
        if r > shape.max_rank:
            raise InputError(
                f"r is {r}, above min(out, in) = {shape.max_rank} of layer {shape.name} "
                f"{(shape.out_features, shape.in_features)}: lower r or exclude the layer"
            )
        return int(r)

    def check(self, shape: LayerShape) -> None:
        """Refuse a layer this config cannot adapt; called for every layer before any is changed.

        Raises:
            InputError: naming the layer and the remedy.
        """
        self.rank(shape)

    def knob_values(self, shapes: Sequence[LayerShape]) -> Iterable[Any]:
        """The values of the knob that every one of these layers accepts."""
        return range(1, min(shape.max_rank for shape in shapes) + 1)

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        """How many numbers train over these layers, from the method's formula."""
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
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> PeftConfig:
        """PEFT's loading, which for a local checkpoint also reads its weights, so that a damaged or foreign one is
        refused before the model is touched.

        Raises:
            InputError: the weights are missing or damaged.
        """
        config: PeftConfig = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        directory = Path(pretrained_model_name_or_path, subfolder or "")
        pickled = (directory / "adapter_model.bin").is_file()
        if directory.is_dir() and isinstance(config, AdapterConfig) and not pickled:
            config.checkpoint = read_outline(directory, () if config.save_basis else config.checks)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are written to adapter_config.json."""
        return {**super().to_dict(), "base_check": getattr(self, "_saved_check", self.base_check)}


class Adapter(nn.Module):
    """ΔW(θ) of one frozen weight ``(out, in)``. ``delta_weight`` is the definition, ``forward`` a faster route.

    Parameters are flat attributes (no nesting) and train; buffers are frozen. A buffer that is registered with
    ``persistent=True`` is saved: only what cannot be rebuilt from the seed or the base weight may be.
    Parameters and buffers are made in float32 (float64 where the weight is) and follow the base's dtype later.
    """

    recompute: ClassVar[bool] = False  # rebuild ΔW in the backward pass instead of keeping it

    def __init__(self, layer: LayerContext) -> None:
        super().__init__()
        self.layer = layer
        self.base_check: list[float] = []

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the adapter computes in: that of its first parameter."""
        return next(
            (parameter.dtype for parameter in self._parameters.values() if parameter is not None),
            torch.float32,
        )

    def delta_weight(self) -> Float[Tensor, "out in"]:
        """The exact ΔW, differentiable in the parameters."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The branch ``x ΔWᵀ`` (or the layer's convolution or look-up with ΔW) for the layer's own input."""
        delta = self.delta_weight().reshape(self.layer.shape.weight)
        return self.layer.op.apply(x, delta.to(x.dtype) if x.is_floating_point() else delta)

    def add_to(self, y: Tensor, x: Tensor, scaling: float) -> Tensor:
        """``y + scaling · forward(x)``, fused where a method can."""
        if self.recompute and torch.is_grad_enabled():
            branch = checkpoint(self, x, use_reentrant=False, preserve_rng_state=False)
        else:
            branch = self(x)
        return torch.add(y, branch, alpha=scaling)

    def fold(self, weight: Float[Tensor, "out in"], scaling: float) -> Float[Tensor, "out in"]:
        """``weight + scaling · ΔW``, fused where a method can."""
        return torch.add(weight, self.delta_weight().to(weight.dtype), alpha=scaling)

    def multiply_adds(self, tokens: int) -> tuple[int, int]:
        """Multiply–adds of a training step (forward and backward) beyond the frozen layer's, for the routes
        (factored, folded); affine in the tokens. Without a factored route the folded one always wins."""
        return self.fold_cost(tokens) + 1, self.fold_cost(tokens)

    def fold_cost(self, tokens: int) -> int:
        """The folded route: the gradient of the dense weight, beside building it."""
        shape = self.layer.shape
        return tokens * shape.out_features * shape.in_features

    def randomize(self) -> None:
        """Move every parameter to a random point near its start (``init_weights=False``)."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


class LowRankAdapter(Adapter):
    """ΔW = scale · B A with ``A (r, in)`` and ``B (out, r)``: a method only says what its factors are."""

    scale: float = 1.0

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """The factors (A, B), differentiable in the parameters."""
        raise NotImplementedError

    def delta_weight(self) -> Float[Tensor, "out in"]:
        a, b = self.factors()
        return self.scale * (b @ a)

    def forward(self, x: Tensor) -> Tensor:
        h, b_t = self.project(x)
        return self.expand(h * self.scale, b_t)

    def add_to(self, y: Tensor, x: Tensor, scaling: float) -> Tensor:
        h, b_t = self.project(x)
        if self.layer.op.kind != "linear" or y.dim() != 2 or y.dtype != h.dtype:
            return torch.add(y, self.expand(h, b_t), alpha=scaling * self.scale)
        return torch.addmm(y, h, b_t.to(h.dtype), alpha=scaling * self.scale)

    def fold(self, weight: Float[Tensor, "out in"], scaling: float) -> Float[Tensor, "out in"]:
        a, b = (factor.to(weight.dtype) for factor in self.factors())
        alpha = scaling * self.scale
        if self.layer.op.stored_transposed:
            # Keep the weight's memory layout, and so the bits of its products.
            return torch.addmm(weight.t(), a.t(), b.t(), alpha=alpha).t()
        return torch.addmm(weight, b, a, alpha=alpha)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input through A, and Bᵀ ``(r, out)``: ``(x Aᵀ, Bᵀ)``."""
        a, b = self.factors()
        a = a.to(x.dtype) if x.is_floating_point() else a
        op, (_, *rest) = self.layer.op, self.layer.shape.weight
        if op.kind != "conv":
            return op.apply(x, a), b.t()
        kernel = a.reshape(a.shape[0], *rest).repeat(op.groups, *(1 for _ in rest))
        return op.apply(x, kernel), b.t()

    def expand(self, h: Tensor, b_t: Float[Tensor, "r out"]) -> Tensor:
        """``h Bᵀ``; for a convolution a pointwise one."""
        if self.layer.op.kind != "conv":
            return h @ b_t.to(h.dtype)
        spatial = len(self.layer.shape.weight) - 2
        convolution = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[spatial - 1]
        kernel = b_t.t().reshape(*b_t.shape[::-1], *(1 for _ in range(spatial))).to(h.dtype)
        return convolution(h, kernel, groups=self.layer.op.groups)

    def multiply_adds(self, tokens: int) -> tuple[int, int]:
        shape, r = self.layer.shape, self.factor_rank
        through = 3 * tokens * r * (shape.in_features + shape.out_features)
        building = 3 * r * shape.in_features * shape.out_features
        return through, self.fold_cost(tokens) + building

    @property
    def factor_rank(self) -> int:
        """Rows of A."""
        raise NotImplementedError
