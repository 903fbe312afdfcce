"""NOLA: LoRA's factors as sums of random matrices that are never stored, ΔW = (α/r) · B A with

    A = A⁰ + c_k Σᵢ αᵢ Aᵢ   (r, in)        B = c_l Σⱼ βⱼ Bⱼ   (out, r)

Only the coefficients α (k,), β (l,) train, whatever r, in and out are. The Aᵢ, Bⱼ are functions of (seed, layer, side,
index): they are made a few at a time, in both passes, and forgotten, so memory does not grow with k. An allowance
(`basis_memory`) keeps the first of them as 16-bit integers, which changes no bit of a result.

Source: Koohpayegani et al., 2024, arXiv:2310.02556.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.adapters._base import Adapter, LowRankAdapter
from eckart.adapters._config import AdapterConfig
from eckart.adapters._layers import LayerContext, LayerShape, whole
from eckart.adapters._registry import register_adapter
from eckart.errors import InputError
from eckart.linalg.packing import pack_absmax, unpack_absmax
from eckart.linalg.random import (
    Law,
    basis_block,
    basis_words,
    counter_key,
    mix_random_basis,
    random_matrix,
)


@register_adapter(
    "nola",
    title="NOLA",
    paper="Koohpayegani et al., 2024",
    arxiv="2310.02556",
    trains="coefficients of random matrices, k + l a layer whatever its size",
    saves="the coefficients; the matrices follow from the seed",
)
@dataclass
class NOLAConfig(AdapterConfig):
    """NOLA: train the mixing coefficients of seeded random factors (Koohpayegani et al., 2024, arXiv:2310.02556).

    Args:
        num_basis: k, random matrices mixed into A.
        num_basis_B: l, random matrices mixed into B; k when None.
        r: rank; 4 when None. Costs no parameters, but the random numbers of a step are proportional to it.
        lora_alpha: α of the scaling α/r; 8 when None, 1 in mode ``"vit"``.
        mode: ``"language"``: uniform basis on ±1 over √k, a random offset A⁰, zero coefficients, so ΔW starts at 0.
            ``"vit"``: basis on ±1/√(numbers in one matrix), no offset, coefficients 1/k and 1/l, so ΔW starts small.
        basis: ``"uniform"``, ``"normal"`` or ``"kaiming"`` (uniform, as in mode ``"vit"``); the mode's when None.
        offset: False leaves A⁰ out of mode ``"language"``; the αᵢ then start at 1/√in instead of 0.
        shared_basis: layers of equal shape use the same matrices.
        factored: False mixes whole matrices, ΔW = c_k Σᵢ αᵢ Wᵢ, as PRANC does; r and num_basis_B then have no part.
        basis_memory: random numbers that are kept in memory instead of made again, 2 bytes each, for each number of
            the adapted weights; 0 keeps none. No checkpoint holds them.
        chunk_size: matrices made at once, rounded up to whole products; what suits the device when None.
        coefficient_bits: 8 or 4 round the saved coefficients to that many bits of their largest.

    Raises:
        InputError: an option outside its range.
    """

    num_basis: int = 256
    num_basis_B: int | None = None
    r: int | None = None
    lora_alpha: float | None = None
    mode: Literal["language", "vit"] = "language"
    basis: Literal["uniform", "normal", "kaiming"] | None = None
    offset: bool = True
    shared_basis: bool = False
    factored: bool = True
    basis_memory: float = 0.25
    chunk_size: int | None = None
    coefficient_bits: Literal[4, 8] | None = None

    knob: ClassVar[str] = "num_basis"
    default_r: ClassVar[int] = 4
    learning_rates: ClassVar[tuple[float, ...]] = (3e-3, 1e-2, 3e-2)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_basis", "num_basis_B", "chunk_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}: give at least 1")
        for name, known in (
            ("mode", ("language", "vit")),
            ("basis", (None, "uniform", "normal", "kaiming")),
            ("coefficient_bits", (None, 8, 4)),
        ):
            if getattr(self, name) not in known:
                raise InputError(
                    f"{name} is {getattr(self, name)!r}: give one of {', '.join(map(str, known))}"
                )

    def knob_values(self, shapes: Sequence[LayerShape]) -> Iterable[int]:
        """1 up to where the basis of the largest factor spans all there is."""
        return range(1, max(self.rank(s) * max(s.out_features, s.in_features) for s in shapes) + 1)

    def counts(self) -> list[int]:
        """Trained numbers of one layer: [k, l], or [k] without factors."""
        return [self.num_basis, self.num_basis_B or self.num_basis] if self.factored else [self.num_basis]

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        """k + l a layer."""
        return sum(self.counts()) * len(shapes)

    def saved_bytes(self, shapes: Sequence[LayerShape]) -> int:
        """4 a coefficient, or its bits and 4 for the step; with ``save_basis`` also the matrices and the offset."""
        counts, bits = self.counts(), self.coefficient_bits
        total = len(shapes) * sum(4 * k if bits is None else -(-k * bits // 8) + 4 for k in counts)
        for shape in shapes if self.save_basis else ():
            out, inner = shape.out_features, shape.in_features
            if self.factored:
                offset = self.offset and self.mode == "language"
                total += 4 * self.rank(shape) * ((counts[0] + offset) * inner + counts[1] * out)
            else:
                total += 4 * counts[0] * out * inner
        return total

    def sides(self, shape: LayerShape) -> dict[str, tuple[int, ...]]:
        """The shape of one random matrix of each side of a layer."""
        out, inner = shape.out_features, shape.in_features
        if not self.factored:
            return {"W": (out, inner)}
        return {"A": (self.rank(shape), inner), "B": (out, self.rank(shape))}

    def stream(self, side: str, shape: LayerShape) -> tuple[object, ...]:
        """What tells the random matrices of a side from others: its shape where they are shared, or the layer."""
        return self.sides(shape)[side] if self.shared_basis else (shape.name,)

    def kept_share(self, shapes: Sequence[LayerShape]) -> float:
        """The part of all random matrices that ``basis_memory`` has room for."""
        counts = dict(zip("AB" if self.factored else "W", self.counts(), strict=True))
        sizes = {
            (side, *self.stream(side, shape)): counts[side] * math.prod(size)
            for shape in shapes
            for side, size in self.sides(shape).items()
        }
        weights = sum(shape.out_features * shape.in_features for shape in shapes)
        return min(self.basis_memory * weights / sum(sizes.values()), 1.0)

    def build(self, weight: Float[Tensor, "out in"], layer: LayerContext) -> Adapter:
        """Coefficients at their start; the matrices only with ``save_basis``."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return NOLA(self, dtype, layer) if self.factored else DenseNOLA(self, dtype, layer)


class _Words(nn.Module):
    """The words of the random matrices that are kept; layers that share the matrices have them in common."""

    words: Tensor | None

    def __init__(self, key: int, rows: int, size: int) -> None:
        super().__init__()
        self.register_buffer("words", basis_words(key, rows, size) if rows else None, persistent=False)


class _Mixtures(_Words):
    """The mixtures of all layers that share the random matrices of a side, which are made once for them all."""

    def __init__(self, side: str, key: int, rows: int, size: int, law: Law, chunk: int) -> None:
        super().__init__(key, rows, size)
        self.name, self.given, self.members = f"coefficients_{side}", (key, size, law, chunk), list[Adapter]()

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The coefficients, which the layers own."""
        yield from (getattr(member, self.name) for member in self.members)

    def forward(self) -> tuple[Tensor, ...]:
        coefficients = [whole(parameter) for parameter in self.parameters()]
        mixed = mix_random_basis(
            torch.stack([c.to(coefficients[0].device) for c in coefficients]), *self.given, self.words
        )
        return tuple(m.to(c.device) for m, c in zip(mixed.unbind(), coefficients, strict=True))


class _RandomMix(Adapter):
    """Σᵢ cᵢ Mᵢ over the random matrices of each side of one layer."""

    def __init__(self, config: NOLAConfig, layer: LayerContext) -> None:
        super().__init__(layer)
        self.config = config
        self._law: Law = "normal" if config.basis == "normal" else "uniform"
        self._sides: dict[str, tuple[tuple[int, ...], int, float]] = {}
        self._places: dict[str, int] = {}

    def _start(self, side: str, k: int, value: float, dtype: torch.dtype) -> None:
        """Register the coefficients of a side and, with ``save_basis``, its matrices, else the words it keeps."""
        config, shape = self.config, self.config.sides(self.layer.shape)[side]
        vit, size, where = config.mode == "vit", math.prod(shape), config.stream(side, self.layer.shape)
        key = counter_key("nola", self.layer.seed, side, *where)
        unit = config.basis == "kaiming" or (config.basis is None and (vit or not config.factored))
        self._sides[side] = shape, key, size**-0.5 if unit else 1.0
        coefficients = torch.full((k,), 1 / k if vit else value, dtype=dtype)
        self.register_parameter(f"coefficients_{side}", nn.Parameter(coefficients))
        if config.save_basis:
            basis = random_matrix(key, k, size, self._law, dtype=dtype).mul_(self._sides[side][2])
            self.register_buffer(f"basis_{side}", basis.view(k, *shape))
            return
        share, block = config.kept_share(self.layer.pool.shapes), basis_block(size)
        rows = k if share == 1 else int(share * k) // block * block
        if not config.shared_basis:
            self.share(f"words_{side}", lambda: _Words(key, rows, size), *where)
            return
        given = side, key, rows, size, self._law, config.chunk_size or 0
        members = self.share(f"words_{side}", lambda: _Mixtures(*given), *where).members
        self._places[side] = len(members)
        members.append(self)

    def mix(self, side: str) -> Tensor:
        """The mixture of a side's matrices, in the dtype of its coefficients."""
        coefficients, (shape, key, bound) = getattr(self, f"coefficients_{side}"), self._sides[side]
        scale = 1.0 if self.config.mode == "vit" else coefficients.numel() ** -0.5
        if self.config.save_basis:
            mixed = coefficients @ getattr(self, f"basis_{side}").to(coefficients.dtype).flatten(1)
        else:
            scale *= bound
            if side in self._places:
                mixed = self.once(f"words_{side}")[self._places[side]]
            else:
                chunk, words = self.config.chunk_size or 0, self.shared[f"words_{side}"].words
                mixed = mix_random_basis(coefficients, key, math.prod(shape), self._law, chunk, words)
        result: Tensor = (scale * mixed).to(coefficients.dtype).view(shape)
        return result

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if bits := self.config.coefficient_bits:
            for name, coefficients in self.named_parameters():
                codes, step = pack_absmax(coefficients.detach(), bits)
                destination[prefix + name], destination[f"{prefix}{name}_step"] = codes, step

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name, coefficients in self.named_parameters():
            step = state_dict.pop(f"{prefix}{name}_step", None)
            if step is not None and self.config.coefficient_bits:
                codes = state_dict[prefix + name]
                values = unpack_absmax(codes, step, coefficients.numel(), self.config.coefficient_bits)
                state_dict[prefix + name] = values
        super()._load_from_state_dict(state_dict, prefix, *args)


class NOLA(_RandomMix, LowRankAdapter):
    """ΔW = (α/r) · B A with mixed factors."""

    lora_A0: Tensor | None

    def __init__(self, config: NOLAConfig, dtype: torch.dtype, layer: LayerContext) -> None:
        super().__init__(config, layer)
        r, inner = config.rank(layer.shape), layer.shape.in_features
        alpha = (1.0 if config.mode == "vit" else 8.0) if config.lora_alpha is None else config.lora_alpha
        self.scale, (k_a, k_b) = alpha / r, config.counts()
        offset = config.offset and config.mode == "language"
        self._start("A", k_a, 0.0 if offset else inner**-0.5, dtype)
        self._start("B", k_b, 0.0, dtype)
        a0 = None
        if offset:
            key = counter_key("nola offset", layer.seed, layer.shape.name)
            a0 = random_matrix(key, r, inner, dtype=dtype).mul_(inner**-0.5)
        self.register_buffer("lora_A0", a0, persistent=config.save_basis)

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """A = A⁰ + its mixture, and B."""
        a = self.mix("A")
        return a if self.lora_A0 is None else self.lora_A0.to(a.dtype) + a, self.mix("B")

    @property
    def factor_rank(self) -> int:
        """r."""
        return self._sides["B"][0][1]


class DenseNOLA(_RandomMix):
    """ΔW = Σᵢ αᵢ Wᵢ without factors."""

    recompute = True

    def __init__(self, config: NOLAConfig, dtype: torch.dtype, layer: LayerContext) -> None:
        super().__init__(config, layer)
        self._start("W", config.num_basis, 0.0, dtype)

    def delta_weight(self) -> Float[Tensor, "out in"]:
        """The mixture."""
        return self.mix("W")
