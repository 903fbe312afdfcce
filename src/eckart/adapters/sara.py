"""SaRA: train the smallest weights where they are, ΔW[M] = p − W₀[M] with M = [|W₀| < θ], all others stay.

    sara_learn (|M|): p, the trained weights themselves, W₀[M] at the start       sara_index (|M|): where they are

One θ for all layers. The base stays frozen, ΔW is added to it, and only the gathered gradient of the chosen weights is
kept. The training rule `sara-selection` adds the nuclear norm of the chosen weights and chooses again on the way.
Source: Hu et al., 2025, arXiv:2409.06633.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eckart.adapters._base import Adapter
from eckart.adapters._config import AdapterConfig
from eckart.adapters._layers import LayerContext, LayerShape, Pool
from eckart.adapters._registry import register_adapter
from eckart.errors import InputError

_DEFAULT_SHARE = 0.1
_BOUNDS: WeakKeyDictionary[Pool, dict[str, float]] = WeakKeyDictionary()


@register_adapter(
    "sara",
    title="SaRA",
    paper="Hu et al., 2025",
    arxiv="2409.06633",
    trains="the smallest weights, chosen by one threshold over all layers",
    saves="the chosen weights and their places",
)
@dataclass
class SaRAConfig(AdapterConfig):
    """SaRA: train the weights that matter least, those below a threshold (Hu et al., 2025, arXiv:2409.06633).

    Args:
        threshold: θ, in the unit of the weights; the paper's default is 2e-3.
        chosen: how many weights to choose, over all layers; gives θ. A tenth of all when neither is given.
        train_bias: choose among the biases of the adapted layers too.

    Every layer has its smallest weight chosen, whatever θ is.

    Raises:
        InputError: an option outside its range; both are given.
    """

    threshold: float | None = None
    chosen: int | None = None
    train_bias: bool = False

    knob: ClassVar[str] = "chosen"
    needs_base: ClassVar[bool] = True
    learning_rates: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and self.chosen is not None:
            raise InputError(
                f"threshold ({self.threshold}) and chosen ({self.chosen}) are both given: leave one out"
            )
        if self.threshold is not None and not self.threshold > 0:
            raise InputError(f"threshold is {self.threshold}: give a number above 0")
        if self.chosen is not None and self.chosen < 1:
            raise InputError(f"chosen is {self.chosen}: give at least 1")

    def sizes(self, shape: LayerShape) -> list[Float[Tensor, " _"]]:
        """The magnitudes of a layer's tensors, the smallest of its weight at −1 so that it is chosen."""
        weight = _flat(shape.matrix()).abs()
        weight[weight.argmin()] = -1.0
        bias = shape.bias() if self.train_bias else None
        return [weight] if bias is None else [weight, _flat(bias).abs()]

    def bound(self, shapes: Sequence[LayerShape]) -> float:
        """θ, below which a weight is chosen. Weights of one size are chosen together or not at all.

        Args:
            shapes: of all layers.
        """
        if self.threshold is not None:
            return self.threshold
        magnitudes = torch.cat([size.cpu() for shape in shapes for size in self.sizes(shape)])
        wanted = self.chosen or math.ceil(_DEFAULT_SHARE * magnitudes.numel())
        if wanted >= magnitudes.numel():
            return math.inf
        return float(magnitudes.kthvalue(max(wanted, len(shapes)) + 1).values)

    def knob_values(self, shapes: Sequence[LayerShape]) -> Sequence[int]:
        """From one weight in each layer up to all."""
        biases = [shape.bias() for shape in shapes] if self.train_bias else []
        total = sum(s.out_features * s.in_features for s in shapes) + sum(
            b.numel() for b in biases if b is not None
        )
        return range(len(shapes), total + 1)

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        """How many weights are below θ."""
        bound = self.bound(shapes)
        return sum(int((size < bound).sum()) for shape in shapes for size in self.sizes(shape))

    def saved_bytes(self, shapes: Sequence[LayerShape]) -> int:
        """4 for each chosen weight and 4 for its place."""
        return 8 * self.trainable_parameters(shapes)

    def build(self, weight: Float[Tensor, "out in"], layer: LayerContext) -> SaRA:
        """The chosen weights, as they are."""
        known = _BOUNDS.setdefault(layer.pool, {})
        key = f"{self.threshold} {self.chosen} {self.train_bias}"
        if key not in known:
            known[key] = self.bound(layer.pool.shapes)
        bound, (sizes, *more) = known[key], self.sizes(layer.shape)
        values = [_flat(weight), *(_flat(b) for b in [layer.shape.bias()] if more and b is not None)]
        index = [(size < bound).nonzero().flatten() for size in (sizes, *more)]
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return SaRA([v.to(dtype) for v in values], index, layer)


def _flat(tensor: Tensor) -> Float[Tensor, " n"]:
    return tensor.detach().reshape(-1).to(torch.promote_types(tensor.dtype, torch.float32), copy=True)


class SaRA(Adapter):
    """ΔW[M] = sara_learn − W₀[M], and the same for the bias. ``names`` are those of the trained tensors."""

    recompute = (
        True  # W₀ + ΔW is built again for the backward pass, and of its gradient only the chosen entries stay
    )
    sara_learn: nn.Parameter

    def __init__(
        self, values: list[Float[Tensor, " _"]], index: list[Int[Tensor, " _"]], layer: LayerContext
    ) -> None:
        super().__init__(layer)
        self.names = ["sara_learn", "sara_learn_bias"][: len(values)]
        for name, value, places in zip(self.names, values, index, strict=True):
            start = value[places]
            self.register_parameter(name, nn.Parameter(start.clone()))
            self.register_buffer(f"{name}_start", start, persistent=False)
            self.register_buffer(f"{name}_index", places.to(torch.int32))

    def change(self, name: str) -> tuple[Int[Tensor, " chosen"], Float[Tensor, " chosen"]]:
        """The places of the chosen weights and how far each has moved."""
        learned: Tensor = getattr(self, name)  # which the first FSDP makes a plain tensor
        start = self.get_buffer(f"{name}_start")
        return self.get_buffer(f"{name}_index").long(), learned - start.to(learned.dtype)

    def _scattered(self, name: str, size: int) -> Float[Tensor, " size"]:
        index, change = self.change(name)
        return change.new_zeros(size).index_add(0, index, change)

    def delta_weight(self) -> Float[Tensor, "out in"]:
        shape = self.layer.shape
        size = shape.out_features * shape.in_features
        return self._scattered("sara_learn", size).view(shape.out_features, shape.in_features)

    def delta_bias(self) -> Float[Tensor, " out"] | None:
        if len(self.names) == 1:
            return None
        return self._scattered("sara_learn_bias", self.layer.shape.out_features)

    def fold(self, weight: Float[Tensor, "out in"], scaling: float) -> Float[Tensor, "out in"]:
        index, change = self.change("sara_learn")
        places = (
            index // weight.shape[1],
            index % weight.shape[1],
        )  # by row and column: the weight keeps its layout
        return weight.index_put(places, scaling * change.to(weight.dtype), accumulate=True)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name in self.names:
            key = f"{prefix}{name}_index"
            stored, ours = state_dict.get(key), self.get_buffer(f"{name}_index")
            if stored is not None and not stored.is_meta and not torch.equal(stored.to(ours), ours):
                raise InputError(
                    f"{key}: other weights are the smallest here than in the checkpoint: load it on its own base "
                    "model, in the same dtype"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


def learning_rate(threshold: float) -> float:
    """The paper's learning rate for a threshold, 10⁻³ exp(−350 θ)."""
    return 1e-3 * math.exp(-350 * threshold)
