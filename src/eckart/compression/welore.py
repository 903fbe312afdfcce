"""WeLore: one threshold on normalised singular values gives every matrix its own rank.

    σ̂_i = (σ_i − σ_n)/(σ_1 − σ_n)    pruned = #{σ̂_i < t}    k = n − pruned

A matrix that loses more than ``min_ratio`` of its rank becomes W ≈ (U_k √Σ_k)(√Σ_k V_kᵀ), a low-rank component; only
those, and the norms, are fine-tuned afterwards (`train_low_rank`). All others stay dense and frozen.

Source: Jaiswal et al., 2024, arXiv:2407.11239.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.compression._census import Outline, matrix_shape, weight_matrix
from eckart.compression._layers import FactorizedLinear
from eckart.compression._method import FactorCompressor, saves
from eckart.compression.svd import truncated
from eckart.errors import InputError
from eckart.linalg.moments import Moments
from eckart.linalg.spectrum import singular_values
from eckart.linalg.whitened import Factors

Target = Literal["attempted", "realised", "params"]
Shapes = Mapping[str, tuple[int, int]]
HALVINGS = 60


@dataclass
class WeLore(FactorCompressor):
    """WeLore: adaptive ranks from the tails of the singular values; needs no data.

    Args:
        threshold: t in (0, 1], instead of a ratio.
        target_on: what the ratio is a share of: of all ranks whether or not a matrix is factorised ("attempted"), of
            all ranks, only those that are given up ("realised"), or of the layers' parameters ("params").
        min_ratio: a matrix is a low-rank component if it loses more than this share of its rank, in [0, 1).
        lrc_rule: "half" the rule of ``min_ratio``; "break_even" every matrix whose factors are smaller than itself.

    Raises:
        InputError: an option outside its range.
    """

    threshold: float | None = None
    target_on: Target = "params"
    min_ratio: float = 0.4999
    lrc_rule: Literal["half", "break_even"] = "half"

    slug: ClassVar[str] = "welore"
    instead: ClassVar[tuple[str, ...]] = ("threshold",)
    calibrated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise InputError(f"threshold is {self.threshold}: give a number in (0, 1]")
        if not 0 <= self.min_ratio < 1:
            raise InputError(f"min_ratio is {self.min_ratio}: give a share in [0, 1)")
        if self.target_on not in ("attempted", "realised", "params"):
            raise InputError(f"target_on is {self.target_on!r}: give attempted, realised or params")
        if self.lrc_rule not in ("half", "break_even"):
            raise InputError(f"lrc_rule is {self.lrc_rule!r}: give half or break_even")
        if self.rank is not None or self.ranks is not None:
            raise InputError(
                "welore finds the ranks itself: give a ratio or a threshold instead of rank or ranks"
            )

    def plan(self, outline: Outline, ratio: float | None, influence: Sequence[float]) -> None:
        values = {name: singular_values(weight_matrix(layer)).cpu() for name, layer in outline.layers.items()}
        shapes = {name: matrix_shape(layer) for name, layer in outline.layers.items()}
        threshold = self.threshold
        if threshold is None:
            assert ratio is not None
            threshold = self.find_threshold(values, shapes, ratio)
        step = self.multiple_of or 1
        ranks = self.low_rank_components(values, shapes, threshold)
        self._planned = {name: max(rank // step * step, 1) for name, rank in ranks.items()}
        if not self._planned:
            raise InputError(
                f"threshold is {threshold:.4g}: no matrix loses more than {self.min_ratio:.0%} of its rank and gets "
                "smaller; raise the ratio or the threshold, or give lrc_rule='break_even'"
            )

    def low_rank_components(
        self, values: Mapping[str, Tensor], shapes: Shapes, threshold: float
    ) -> dict[str, int]:
        """Ranks of the matrices that are factorised at a threshold."""
        found = {}
        for name, s in values.items():
            pruned = pruned_count(s, threshold)
            rank = max(s.numel() - pruned, 1)
            chosen = self.lrc_rule == "break_even" or is_low_rank(s, threshold, self.min_ratio)
            if chosen and saves(shapes[name], rank):
                found[name] = rank
        return found

    def find_threshold(self, values: Mapping[str, Tensor], shapes: Shapes, target: float) -> float:
        """The smallest t whose reduction reaches the target.

        Raises:
            InputError: the target is out of reach.
        """

        def reached(threshold: float) -> float:
            ranks = self.low_rank_components(values, shapes, threshold)
            if self.target_on == "attempted":
                return reduction(list(values.values()), threshold)
            if self.target_on == "realised":
                lost = sum(values[name].numel() - rank for name, rank in ranks.items())
                return lost / sum(s.numel() for s in values.values())
            before = sum(out * width for out, width in shapes.values())
            return sum(shapes[n][0] * shapes[n][1] - k * sum(shapes[n]) for n, k in ranks.items()) / before

        if reached(1.0) < target:
            raise InputError(
                f"ratio is {target}: even t = 1 reaches {reached(1.0):.3f} of target_on={self.target_on!r}; lower it"
            )
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if reached(middle) >= target else (middle, high)
        return high

    def factors(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        rank: int,
        moments: Moments | None,
    ) -> Factors:
        return truncated(weight, bias, rank)


def pruned_count(s: Float[Tensor, " n"], threshold: float) -> int:
    """#{i : (σ_i − σ_n)/(σ_1 − σ_n) < t}, and 0 for a spectrum that is constant to the last digits.

    Args:
        s: singular values in falling order.
        threshold: t.
    """
    spread = s[0] - s[-1]
    if not bool(spread > torch.finfo(s.dtype).eps * s[0]):
        return 0
    return int(((s - s[-1]) / spread < threshold).sum())


def is_low_rank(s: Float[Tensor, " n"], threshold: float, min_ratio: float) -> bool:
    """Whether a matrix loses more than this share of its rank."""
    return pruned_count(s, threshold) / s.numel() > min_ratio


def reduction(spectra: Sequence[Float[Tensor, " n"]], threshold: float) -> float:
    """Effective rank reduction ERR(t) = Σ pruned / Σ n over all matrices, never falling in t."""
    return sum(pruned_count(s, threshold) for s in spectra) / sum(s.numel() for s in spectra)


def train_low_rank(model: nn.Module) -> list[nn.Parameter]:
    """Freeze all of a compressed model but its low-rank components and its norms; what trains is returned.

    Build the optimiser from this list, after compression.

    Raises:
        InputError: the model has no low-rank component.
    """
    if not any(isinstance(module, FactorizedLinear) for module in model.modules()):
        raise InputError(f"{type(model).__name__} has no low-rank component: compress it first")
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, FactorizedLinear) or "norm" in type(module).__name__.lower():
            module.requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
