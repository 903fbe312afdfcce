"""Bone: one trained block, repeated along the input. Today called MiSS; with it its relatives Bat, mini and shard_out.

    miss        ΔW[:, c r : (c+1) r] = Dᵀ for every slice c of r inputs        miss_block (r, out): D
    mini        as miss, D = [M M … M] along the outputs                       miss_block (r, mini_r): M
    shard_out   every output of shard i gets row D_i                           miss_block (r, in): D
    bat         ΔW_jc = W_jc B_j + B_j for the r×r blocks of W₀                miss_block (out/r, r, r): B
    bat-row     ΔW_jc = W_jc B_c + B_c                                         miss_block (in/r, r, r): B

Source: Kang (& Yin), "Bone" (2024), "DiSHA", "MiSS" (2025), arXiv:2409.15371.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from jaxtyping import Float
from peft import MissConfig as PeftMissConfig
from torch import Tensor, nn
from torch.nn import functional as F

from eckart.adapters._base import Adapter, LowRankAdapter
from eckart.adapters._budget import target_shapes
from eckart.adapters._checkpoint import MODEL_PREFIX
from eckart.adapters._config import AdapterConfig
from eckart.adapters._from_peft import our_key, peft_options
from eckart.adapters._layers import LayerContext, LayerShape
from eckart.adapters._registry import register_adapter
from eckart.errors import InputError
from eckart.linalg.blocks import BlockLinear

Variant = Literal["miss", "mini", "shard_out", "bat", "bat-row"]
_NARROW = 6
"""Up to this r a product with [I I … I] is faster than sums of slices that are shorter than a vector register."""
_BOTH = ("out_features", "in_features")
_DIVIDED = {"shard_out": _BOTH[:1], "bat": _BOTH, "bat-row": _BOTH}  # sides of the weight that r must divide


@register_adapter(
    "bone",
    title="Bone / MiSS",
    paper="Kang & Yin, 2024",
    arxiv="2409.15371",
    trains="one block, repeated along the input",
    saves="r out numbers per layer",
    aliases=("miss", "disha"),
)
@dataclass
class BoneConfig(AdapterConfig):
    """Bone (MiSS): one zero-initialised block D, added to every r-wide slice of the weight's inputs.

    Args:
        r: width of the block, at most the inputs; must divide inputs and outputs for "bat" and "bat-row", and the
            outputs for "shard_out", where it is the number of shards. None is 64, lowered to what suits the layer.
        variant: "miss", "mini" (its block repeated along the outputs too), "shard_out" (the paper's first form), "bat"
            (full rank, one B for each block of outputs) or "bat-row" (one for each block of inputs).
        mini_r: columns of the block for "mini", a divisor of the outputs. None is the largest that is at most r.

    Raises:
        InputError: an option outside its range.

    Source: Kang & Yin, 2024–2025, arXiv:2409.15371.
    """

    r: int | None = None
    variant: Variant = "miss"
    mini_r: int | None = None

    default_r: ClassVar[int] = 64
    monotone: ClassVar[bool] = False
    peft_types: ClassVar[tuple[str, ...]] = ("MISS", "BONE")
    learning_rates: ClassVar[tuple[float, ...]] = (1e-4, 3e-4, 1e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in get_args(Variant):
            raise InputError(f"variant is {self.variant!r}: give one of {', '.join(get_args(Variant))}")
        m = self.mini_r
        if m is not None and (self.variant != "mini" or m < 1 or m != int(m)):
            raise InputError(f"mini_r is {m}, variant {self.variant!r}: it is of 'mini' and at least 1")

    @property
    def needs_base(self) -> bool:  # type: ignore[override]
        """Bat reads the base weight, the other variants never do."""
        return self.variant.startswith("bat")

    def rank(self, shape: LayerShape) -> int:
        if (r := self.pattern(shape) or self.r) is not None:
            sides: list[int] = [getattr(shape, side) for side in _DIVIDED.get(self.variant, _BOTH[1:])]
            return min(r, *sides)
        largest = min(self.default_r, shape.max_rank)
        return next(r for r in range(largest, 0, -1) if self._suits(shape, r))

    def _suits(self, shape: LayerShape, r: int) -> bool:
        return not any(getattr(shape, side) % r for side in _DIVIDED.get(self.variant, ()))

    def check(self, shape: LayerShape) -> None:
        divisors = [("r", self.rank(shape), side) for side in _DIVIDED.get(self.variant, ())]
        for name, value, side in [*divisors, ("mini_r", self.mini_r or 1, "out_features")]:
            if (size := getattr(shape, side)) % value:
                raise InputError(
                    f"{name} is {value}, no divisor of {side} = {size} of layer {shape.name}: give one or exclude it"
                )

    def knob_values(self, shapes: Sequence[LayerShape]) -> Iterable[int]:
        values = range(1, max(shape.max_rank for shape in shapes) + 1)
        kinds = [shape for shape, _ in self.alike(shapes)]
        return [r for r in values if all(self._suits(s, replace(self, r=r).rank(s)) for s in kinds)]

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        return sum(count * math.prod(self.block(shape)) for shape, count in self.alike(shapes))

    def block(self, shape: LayerShape) -> tuple[int, ...]:
        """Shape of ``miss_block`` for one layer."""
        r, out, inputs = self.rank(shape), shape.out_features, shape.in_features
        if self.variant == "mini":
            return r, self.mini_r or next(m for m in range(r, 0, -1) if out % m == 0)
        shapes = {"miss": (r, out), "shard_out": (r, inputs), "bat": (out // r, r, r)}
        return shapes.get(self.variant, (inputs // r, r, r))

    def build(self, weight: Float[Tensor, "out in"], layer: LayerContext) -> Adapter:
        kinds = {"miss": Bone, "mini": Mini, "shard_out": ShardOut, "bat": Bat, "bat-row": BatRow}
        dtype = torch.promote_types(weight.dtype, torch.float32)
        block = torch.zeros(self.block(layer.shape), dtype=dtype, device=weight.device)
        return kinds[self.variant](layer, block)

    @classmethod
    def read_peft(
        cls, saved: dict[str, Any], tensors: dict[str, Tensor], base: nn.Module
    ) -> tuple[BoneConfig, dict[str, Tensor]]:
        """PEFT's MiSS, and Bone of its earlier versions. Rows of a block beyond the inputs of a layer have no part in
        its output and are left out."""
        old = "bone" if saved["peft_type"] == "BONE" else "miss"
        options = peft_options(saved, PeftMissConfig, ("r", f"{old}_dropout", "mini_r", "init_weights"))
        start = saved.get("init_weights", True)
        config = cls(
            r=saved["r"],
            variant=cast(Variant, start if isinstance(start, str) else "miss"),
            dropout=saved.get(f"{old}_dropout") or 0.0,
            **({"mini_r": saved["mini_r"]} if start == "mini" else {}),
            **options,
        )
        ranks = {shape.name: config.rank(shape) for shape in target_shapes(base, config)}
        state = {}
        for key, value in tensors.items():
            layer, _, name = key.rpartition(".")
            ours = name == f"{old}_block"
            rows = (
                ranks.get(layer.removeprefix(MODEL_PREFIX))
                if ours and config.variant in ("miss", "mini")
                else None
            )
            state[our_key(layer, "miss_block") if ours else key] = value[:rows]
        return config, state


class Bone(LowRankAdapter):
    """y = base(x) + S(x) D with S(x)_j = Σ_c x[c r + j] and ``miss_block (r, out)`` D trained."""

    fold = Adapter.fold

    def __init__(self, layer: LayerContext, block: Float[Tensor, "r out"]) -> None:
        super().__init__(layer)
        self.miss_block = nn.Parameter(block)

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        return self._repeat(self._identity()), self.output_block().t()

    def _identity(self) -> Float[Tensor, "r r"]:
        return torch.eye(self.factor_rank, dtype=self.dtype, device=self.device)

    def output_block(self) -> Float[Tensor, "r out"]:
        """D."""
        return self.miss_block

    def delta_weight(self) -> Float[Tensor, "out in"]:
        return self._repeat(self._active(self.output_block(), 0).t())

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = self.factor_rank
        if self.layer.op.kind != "linear" or r <= _NARROW:
            return super().project(x)
        missing = -x.shape[-1] % r
        whole: Any = F.pad(x, (0, missing)) if missing else x
        return whole.unflatten(-1, (-1, r)).sum(-2), self.output_block()

    def _repeat(self, block: Float[Tensor, "rows r"]) -> Float[Tensor, "rows in"]:
        inputs = self.layer.shape.in_features
        return block.repeat(1, -(-inputs // block.shape[1]))[:, :inputs]

    def multiply_adds(self, tokens: int) -> tuple[int, int]:
        shape = self.layer.shape
        through = 2 * tokens * shape.in_features + 3 * tokens * self.miss_block.numel()
        return through, self.fold_cost(tokens) + 2 * shape.in_features * shape.out_features

    @property
    def factor_rank(self) -> int:
        return len(self.miss_block)


class Mini(Bone):
    """Bone with D = [M M … M], ``miss_block (r, mini_r)`` M trained: the product with M is repeated, not M."""

    add_to = Adapter.add_to

    def output_block(self) -> Float[Tensor, "r out"]:
        return self.miss_block.repeat(1, self.layer.shape.out_features // self.miss_block.shape[1])

    def expand(self, h: Tensor, b_t: Float[Tensor, "r out"]) -> Tensor:
        if self.layer.op.kind == "conv":
            return super().expand(h, b_t)
        y = h @ self.miss_block.to(h.dtype)
        return y.repeat(*(1 for _ in y.shape[1:]), self.layer.shape.out_features // y.shape[-1])


class ShardOut(Bone):
    """ΔW = E D: output o gets row ⌊o r / out⌋ of ``miss_block (r, in)`` D, which trains."""

    add_to = Adapter.add_to
    project = LowRankAdapter.project

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        return self.miss_block, self._spread(self._identity(), 0)

    def delta_weight(self) -> Float[Tensor, "out in"]:
        return self._spread(self._active(self.miss_block, 0), 0)

    def expand(self, h: Tensor, b_t: Float[Tensor, "r out"]) -> Tensor:
        return super().expand(h, b_t) if self.layer.op.kind == "conv" else self._spread(h, -1)

    def _spread(self, rows: Tensor, dim: int) -> Tensor:
        return rows.repeat_interleave(self.layer.shape.out_features // self.factor_rank, dim)


class Bat(Adapter):
    """ΔW_jc = W_jc B_j + B_j over the r×r blocks of W₀, ``miss_block (out/r, r, r)`` B trained."""

    recompute = True

    def __init__(self, layer: LayerContext, blocks: Float[Tensor, "n r r"]) -> None:
        super().__init__(layer)
        self.miss_block = nn.Parameter(blocks)

    def delta_weight(self) -> Float[Tensor, "out in"]:
        n, r, _ = self.miss_block.shape
        weight = self.layer.base_weight().to(self.dtype)
        product = torch.bmm(weight.reshape(n, -1, r), self.miss_block).view(n, r, -1, r)
        return (product + self.miss_block.unsqueeze(2)).reshape(weight.shape)

    def folded(
        self,
        x: Float[Tensor, "tokens in"],
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        scaling: float,
    ) -> Tensor | None:
        if self.dtype != x.dtype:
            return None
        y: Tensor = BlockLinear.apply(x, weight, self.miss_block, bias, scaling)  # type: ignore[no-untyped-call]
        return y


class BatRow(Bat):
    """ΔW_jc = W_jc B_c + B_c: one B for each block of inputs, ``miss_block (in/r, r, r)``."""

    folded = Adapter.folded

    def delta_weight(self) -> Float[Tensor, "out in"]:
        n, r, _ = self.miss_block.shape
        weight = self.layer.base_weight().to(self.dtype)
        product = torch.bmm(weight.reshape(-1, n, r).transpose(0, 1), self.miss_block).view(n, -1, r, r)
        return (product + self.miss_block.unsqueeze(1)).permute(1, 2, 0, 3).reshape(weight.shape)
