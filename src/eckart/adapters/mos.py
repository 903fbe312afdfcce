"""MoS: LoRA factors assembled from shards of pools that all blocks share, ΔW_b = (α/r) · B_b A_b with

    row k of A_b    = pool_A[index_A[k, 0]] ‖ … ‖ pool_A[index_A[k, l−1]]          pool_A (N, in/l)
    column k of B_b = pool_B[:, index_B[k, 0]] ‖ … ‖ pool_B[:, index_B[k, l−1]]    pool_B (out/l, N)

For each layer type (its dotted name without block numbers) of L blocks the pools hold N = e·L·l shards: the numbers of
a LoRA of rank e, for factors of rank r > e. The indices are drawn once from the seed and never change; the last p rows
of a block use shards of its own. Source: Wang et al., 2025, arXiv:2410.00938.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eckart.adapters._base import LowRankAdapter
from eckart.adapters._config import AdapterConfig
from eckart.adapters._layers import LayerContext, LayerShape, whole
from eckart.adapters._registry import register_adapter
from eckart.errors import InputError
from eckart.linalg.random import counter_key, permutation, seeded_generator


@register_adapter(
    "mos",
    title="MoS",
    paper="Wang et al., 2025",
    arxiv="2410.00938",
    trains="pools of shards, e(in + out) a layer",
    saves="the pools; the indices follow from the seed",
    aliases=("mixture-of-shards",),
)
@dataclass
class MoSConfig(AdapterConfig):
    """MoS: assemble factors of rank r from shared shards at the cost of rank e (Wang et al., 2025, arXiv:2410.00938).

    Each of its four strategies can be turned off: subset selection (``subset_selection=False``), pair dissociation
    (``pair_dissociation=False``), vector sharding (``shards_per_vector=1``), privatisation (``private_rank=0``).

    Args:
        equivalent_rank: e, the LoRA rank that costs as much; 2 when None.
        private_rank: p ≤ e, rows made of a block's own shards; min(1, e − 1) when None.
        r: rank of a block's factors, from p to p + (e − p) L; 4 e, or as near as that allows, when None.
        shards_per_vector: l, a divisor of in and out; the largest of 4, 3, 2, 1 that is one when None.
        lora_alpha: α of the scaling α/r.
        subset_selection: False lets every block use the whole pool, r = p + (e − p) L.
        pair_dissociation: False draws one index for both sides.

    Raises:
        InputError: an option outside its range.
    """

    equivalent_rank: int | None = None
    private_rank: int | None = None
    r: int | None = None
    shards_per_vector: int | None = None
    lora_alpha: float = 16.0
    subset_selection: bool = True
    pair_dissociation: bool = True

    knob: ClassVar[str] = "equivalent_rank"
    default_r: ClassVar[int] = 2
    learning_rates: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("equivalent_rank", 1), ("private_rank", 0), ("shards_per_vector", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise InputError(f"{name} is {value}: give at least {least}")
        if self.r is not None and not self.subset_selection:
            raise InputError(f"r is {self.r} with subset_selection=False, where it follows: leave r out")

    def sizes(self, shape: LayerShape, blocks: int) -> tuple[int, int, int, int]:
        """(e, p, r, l) of a layer whose type has L blocks.

        Raises:
            InputError: no such factors; names the layer and the remedy.
        """
        wanted = self.default_r if self.equivalent_rank is None else self.equivalent_rank
        if self.private_rank is not None and self.private_rank > wanted:
            raise InputError(
                f"private_rank is {self.private_rank}, above equivalent_rank = {wanted}: lower it"
            )
        e = min(wanted, shape.max_rank)
        p = min(1, e - 1) if self.private_rank is None else min(self.private_rank, e)
        most, where = p + (e - p) * blocks, f"layer {shape.name} {(shape.out_features, shape.in_features)}"
        if self.r is None:
            r = min(4 * e, most, shape.max_rank) if self.subset_selection else most
        else:
            r = min(self.rank(shape), most)
        if not p <= r <= min(most, shape.max_rank):
            raise InputError(
                f"r is {r}, but {where} allows {p} to {min(most, shape.max_rank)}: from p = {p} to p + (e - p) L with "
                f"e = {e} and L = {blocks} blocks of its type; change r, equivalent_rank or private_rank"
            )
        common = math.gcd(shape.in_features, shape.out_features)
        shards = self.shards_per_vector or next(n for n in (4, 3, 2, 1) if common % n == 0)
        if common % shards:
            raise InputError(f"shards_per_vector is {shards}: {where} needs a divisor of {common}")
        return e, p, r, shards

    def knob_values(self, shapes: Sequence[LayerShape]) -> Iterable[int]:
        """The values of e with which every layer has factors."""
        blocks = [(group[0], len(group)) for group in layer_types(shapes).values()]
        for e in range(1, max(shape.max_rank for shape in shapes) + 1):
            with contextlib.suppress(InputError):
                candidate = replace(self, equivalent_rank=e)
                for shape, number in blocks:
                    candidate.sizes(shape, number)
                yield e

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        """Σ e (in + out)."""
        return sum(
            self.sizes(s, len(group))[0] * (s.in_features + s.out_features)
            for group in layer_types(shapes).values()
            for s in group
        )

    def saved_bytes(self, shapes: Sequence[LayerShape]) -> int:
        """4 for each trained number, and with ``save_basis`` 8 for each of the 2 r l indices of a layer."""
        groups = layer_types(shapes).values()
        indices = sum(2 * len(group) * math.prod(self.sizes(group[0], len(group))[2:]) for group in groups)
        return 4 * self.trainable_parameters(shapes) + 8 * indices * self.save_basis

    def build(self, weight: Float[Tensor, "out in"], layer: LayerContext) -> MoS:
        """The pools of the layer's type, made by the first that asks, and its indices."""
        kind, group = next((k, g) for k, g in layer_types(layer.pool.shapes).items() if layer.shape in g)
        e, p, r, shards = self.sizes(layer.shape, len(group))
        count, own, block = e * len(group) * shards, p * shards, group.index(layer.shape)
        public = count - own * len(group)
        private = torch.arange(own) + public + own * block

        def draw(side: str) -> Int[Tensor, "r l"]:
            order = permutation(counter_key("mos", self.seed, kind, block, side), public)
            return torch.cat((order[: r * shards - own], private)).view(r, shards)

        def pools() -> nn.ParameterDict:
            a = torch.zeros(count, layer.shape.in_features // shards)
            b = torch.zeros(layer.shape.out_features // shards, count)
            generator, bound = seeded_generator("mos", self.seed, kind), layer.shape.in_features**-0.5
            if layer.shape.kind == "embedding":
                b.normal_(generator=generator)
            else:
                a.uniform_(-bound, bound, generator=generator)
            dtype = torch.promote_types(weight.dtype, torch.float32)
            return nn.ParameterDict({"pool_A": a.to(dtype), "pool_B": b.to(dtype)})

        index_a = draw("A")
        index_b = draw("B") if self.pair_dissociation else index_a.clone()
        adapter = MoS(self, index_a, index_b, layer)
        adapter.share("pools", pools, kind)
        return adapter


def layer_types(shapes: Sequence[LayerShape]) -> dict[str, list[LayerShape]]:
    """The layers of each type, in model order. A type is a name without its block numbers, and a shape."""
    groups: dict[str, list[LayerShape]] = {}
    for shape in shapes:
        name = ".".join(part for part in shape.name.split(".") if not part.isdigit())
        groups.setdefault(f"{name} {shape.weight}", []).append(shape)
    return groups


class MoS(LowRankAdapter):
    """ΔW = (α/r) · B A, gathered from the pools by two frozen index matrices."""

    index_A: Tensor
    index_B: Tensor

    def __init__(
        self,
        config: MoSConfig,
        index_a: Int[Tensor, "r l"],
        index_b: Int[Tensor, "r l"],
        layer: LayerContext,
    ) -> None:
        super().__init__(layer)
        self.scale = config.lora_alpha / len(index_a)
        self.register_buffer("index_A", index_a, persistent=config.save_basis)
        self.register_buffer("index_B", index_b, persistent=config.save_basis)

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """Rows of A and columns of B, shard by shard."""
        r, device = self.factor_rank, self.index_A.device
        pool_a, pool_b = (whole(self.shared["pools"][name]).to(device) for name in ("pool_A", "pool_B"))
        a = pool_a.index_select(0, self.index_A.flatten()).view(r, -1)
        return a, pool_b.index_select(1, self.index_B.flatten()).t().reshape(r, -1).t()

    @property
    def factor_rank(self) -> int:
        """r."""
        return self.index_A.shape[0]
