"""Intrinsic dimension: all adapted tensors move in one random subspace, θ_D = θ₀ + P θ_d with d trained numbers in all.

    θ_d (d) ── P (D, d), frozen, from the seed ──> D numbers, cut into the ΔW (and Δb) of every layer

    P: "fastfood"  H G Π H B / (√D ‖G‖), never formed, D log D       "dense"   normal entries, columns of length 1
       "sparse"    ±1 with probability 1/√D, columns of length 1
    structure: "global" one P over all tensors; "per-tensor" one P_t for each, of the same θ_d; "said" λ_t P_t θ_d

The tensors are in the order of their layers' names, so that nothing depends on how a model was put together. Sources:
Li et al., 2018, arXiv:1804.08838; fine-tuning, and "said": Aghajanyan et al., 2020, arXiv:2012.13255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.adapters._base import Adapter
from eckart.adapters._config import AdapterConfig
from eckart.adapters._layers import LayerContext, LayerShape, whole
from eckart.adapters._registry import register_adapter
from eckart.errors import InputError
from eckart.linalg.hadamard import fastfood
from eckart.linalg.random import (
    counter_key,
    default_chunk,
    mix_random_basis,
    permutation,
    random_matrix,
    random_words,
    seeded_generator,
)

Law = Literal["fastfood", "dense", "sparse"]
Structure = Literal["global", "per-tensor", "said"]


@register_adapter(
    "intrinsic-dimension",
    title="Intrinsic dimension",
    paper="Li et al., 2018",
    arxiv="1804.08838",
    trains="one vector of d numbers for all layers",
    saves="the d numbers; the projection follows from the seed",
    aliases=("did", "said"),
)
@dataclass
class IntrinsicDimensionConfig(AdapterConfig):
    """Intrinsic dimension: train in a random subspace of d dimensions (Li et al., 2018, arXiv:1804.08838).

    Args:
        d: trained numbers in all, λ included; 200 when None. Never more than the adapted tensors hold.
        projection: "fastfood", "dense" or "sparse".
        structure: "global", "per-tensor" or "said" (Aghajanyan et al., 2020, arXiv:2012.13255).
        train_bias: move the biases of the adapted layers too.

    Raises:
        InputError: an option outside its range.
    """

    d: int | None = None
    projection: Law = "fastfood"
    structure: Structure = "global"
    train_bias: bool = False

    knob: ClassVar[str] = "d"
    default_r: ClassVar[int] = 200
    learning_rates: ClassVar[tuple[float, ...]] = (3e-3, 1e-2, 3e-2)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("projection", get_args(Law)), ("structure", get_args(Structure))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}: give one of {', '.join(known)}")
        if self.d is not None and self.d < 1:
            raise InputError(f"d is {self.d}: give at least 1")

    def tensors(self, shapes: Sequence[LayerShape]) -> dict[tuple[str, str], int]:
        """How many numbers each tensor has that moves, by layer and "weight" or "bias", in the order of P's rows."""
        sizes = {}
        for shape in sorted(shapes, key=lambda shape: shape.name):
            sizes[shape.name, "weight"] = shape.out_features * shape.in_features
            if self.train_bias and (bias := shape.bias()) is not None:
                sizes[shape.name, "bias"] = bias.numel()
        return sizes

    def dimensions(self, sizes: Sequence[int]) -> tuple[int, int]:
        """The lengths of θ_d and λ.

        Raises:
            InputError: d leaves no dimension beside λ.
        """
        scales = len(sizes) if self.structure == "said" else 0
        d = min(self.default_r + scales if self.d is None else self.d, sum(sizes) + scales)
        if d <= scales:
            raise InputError(f"d is {d}, but {scales} tensors have a λ each: give more than {scales}")
        return d - scales, scales

    def knob_values(self, shapes: Sequence[LayerShape]) -> Sequence[int]:
        """From one dimension up to one for each number."""
        sizes = list(self.tensors(shapes).values())
        scales = len(sizes) if self.structure == "said" else 0
        return range(scales + 1, sum(sizes) + scales + 1)

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        """d."""
        return sum(self.dimensions(list(self.tensors(shapes).values())))

    def saved_bytes(self, shapes: Sequence[LayerShape]) -> int:
        """4 for each trained number; with ``save_basis`` also the frozen tensors, which are drawn to be counted."""
        kept: list[Tensor] = []
        if self.save_basis:
            kept = list(Subspace(self, list(self.tensors(shapes).values()), torch.float32).buffers())
        return 4 * self.trainable_parameters(shapes) + sum(t.numel() * t.element_size() for t in kept)

    def build(self, weight: Float[Tensor, "out in"], layer: LayerContext) -> IntrinsicDimension:
        """θ_d = 0 and λ = 1, so that nothing moves."""
        sizes = self.tensors(layer.pool.shapes)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        parts = {part: t for t, (name, part) in enumerate(sizes) if name == layer.shape.name}
        adapter = IntrinsicDimension(parts, layer)
        adapter.share("subspace", lambda: Subspace(self, list(sizes.values()), dtype))
        return adapter


class Fastfood(nn.Module):
    """θ ↦ H G Π H B θ / (√size ‖G‖): G and Π of L = 2^⌈log₂⌉ numbers, B of as many as θ has."""

    B: Tensor
    Pi: Tensor
    G: Tensor

    def __init__(self, size: int, d: int, key: int, dtype: torch.dtype, keep: bool) -> None:
        super().__init__()
        self.size, length = size, 1 << (max(size, d) - 1).bit_length()
        signs = random_words(key, d).bitwise_and_(1).mul_(2).sub_(1)
        gauss = random_matrix(key + 1, 1, length, "normal", dtype=dtype).flatten()
        for name, value in (("B", signs.to(dtype)), ("Pi", permutation(key + 2, length).int()), ("G", gauss)):
            self.register_buffer(name, value, persistent=keep)

    def forward(self, theta: Float[Tensor, " d"]) -> Float[Tensor, " size"]:
        return fastfood(theta, self.B.to(theta.dtype), self.Pi, self.G.to(theta.dtype), self.size)


class Dense(nn.Module):
    """θ ↦ Q (θ / ‖q_j‖) with normal entries: made and forgotten at each call, or kept as ``P``."""

    P: Tensor
    norms: Tensor

    def __init__(self, size: int, d: int, key: int, dtype: torch.dtype, keep: bool) -> None:
        super().__init__()
        self.size, self.key, self.keep = size, key, keep
        if keep:
            self.register_buffer("P", random_matrix(key, d, size, "normal", dtype=dtype).t().contiguous())
            return
        step = default_chunk(size, torch.device("cpu"))
        rows = ((first, min(step, d - first)) for first in range(0, d, step))
        columns = (random_matrix(key, n, size, "normal", first=first, dtype=dtype) for first, n in rows)
        norms = torch.cat([torch.linalg.vector_norm(part, dim=1) for part in columns])
        self.register_buffer("norms", norms, persistent=False)

    def forward(self, theta: Float[Tensor, " d"]) -> Float[Tensor, " size"]:
        if self.keep:
            p = self.P.to(theta.dtype)
            product: Tensor = p @ (theta / torch.linalg.vector_norm(p, dim=0))
            return product
        mixed: Tensor = mix_random_basis(theta / self.norms.to(theta.dtype), self.key, self.size, "normal", 0)
        return mixed


class Sparse(nn.Module):
    """θ ↦ P θ with entries that are ±1 with probability 1/√size, and columns of length 1.

    A column without an entry moves nothing.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, size: int, d: int, key: int, dtype: torch.dtype, keep: bool) -> None:
        super().__init__()
        generator, total, chance = seeded_generator("sparse", key), size * d, size**-0.5
        places = torch.arange(total) if chance == 1 else torch.empty(0, dtype=torch.int64)
        while chance < 1 and (not len(places) or places[-1] < total):
            count = int(total * chance + 6 * (total * chance) ** 0.5) + 16
            gaps = torch.empty(count, dtype=torch.int64).geometric_(chance, generator=generator)
            places = torch.cat([places, gaps.cumsum(0) + (places[-1] if len(places) else -1)])
        places = places[places < total]
        signs = torch.randint(0, 2, places.shape, generator=generator).mul_(2).sub_(1).to(dtype)
        self.size = size
        self.fill(places % size, places // size, signs, d, keep)

    def fill(self, rows: Tensor, columns: Tensor, signs: Tensor, d: int, keep: bool) -> None:
        """Take these entries of ±1."""
        lengths = torch.bincount(columns, minlength=d).clamp_(min=1).to(signs.dtype).sqrt_()
        for name, value in (("rows", rows), ("columns", columns), ("values", signs / lengths[columns])):
            self.register_buffer(name, value, persistent=keep)

    def forward(self, theta: Float[Tensor, " d"]) -> Float[Tensor, " size"]:
        moved = self.values.to(theta.dtype) * theta[self.columns]
        return theta.new_zeros(self.size).index_add(0, self.rows, moved)


_LAWS = {"fastfood": Fastfood, "dense": Dense, "sparse": Sparse}


class Subspace(nn.Module):
    """θ_d, and the numbers it gives each tensor: computed once a forward pass for all layers."""

    theta_d: nn.Parameter
    said_lambda: nn.Parameter | None

    def __init__(self, config: IntrinsicDimensionConfig, sizes: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.sizes, (d, scales) = list(sizes), config.dimensions(sizes)
        self.theta_d = nn.Parameter(torch.zeros(d, dtype=dtype))
        self.said_lambda = nn.Parameter(torch.ones(scales, dtype=dtype)) if scales else None
        blocks = [sum(sizes)] if config.structure == "global" else sizes
        law = _LAWS[config.projection]
        self.blocks = nn.ModuleList(
            law(
                size, d, counter_key("intrinsic", config.seed, config.projection, t), dtype, config.save_basis
            )
            for t, size in enumerate(blocks)
        )

    def forward(self) -> tuple[Tensor, ...]:
        theta = whole(self.theta_d)
        wide = theta.to(torch.promote_types(theta.dtype, torch.float32))
        moves = [cast(Tensor, block(wide)) for block in self.blocks]
        if self.said_lambda is not None:
            scales = whole(self.said_lambda).to(wide.dtype)
            moves = [scale * move for scale, move in zip(scales, moves, strict=True)]
        if len(moves) < len(
            self.sizes
        ):  # one P over all: the parts' gradients meet in one tensor, not in one each
            moves = list(moves[0].split(self.sizes))
        return tuple(move.to(theta.dtype) for move in moves)


class IntrinsicDimension(Adapter):
    """ΔW and Δb, cut out of P θ_d."""

    recompute = True  # P θ_d is there until the backward pass ends: no layer keeps its part of it

    def __init__(self, parts: dict[str, int], layer: LayerContext) -> None:
        super().__init__(layer)
        self.parts = parts

    def delta_weight(self) -> Float[Tensor, "out in"]:
        shape = self.layer.shape
        moved: Tensor = self.once("subspace")[self.parts["weight"]]
        return moved.view(shape.out_features, shape.in_features)

    def delta_bias(self) -> Float[Tensor, " out"] | None:
        return self.once("subspace")[self.parts["bias"]] if "bias" in self.parts else None
