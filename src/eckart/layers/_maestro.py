"""What Maestro's linear layer and convolution have in common: two factors, which ranks are left, which act."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.errors import InputError
from eckart.layers._structured import StructuredLayer, check_rank
from eckart.linalg.ordered import Factors, balanced_factors, rank_norms


class MaestroLayer(StructuredLayer):
    """What the linear layer and the convolution have in common.

    Attributes:
        low_rank: which ranks are left (R); the others are zero in both factors, and stay it.
        gate: in training, which ranks act (R); None for all.
    """

    low_rank: Tensor
    gate: Tensor | None
    names: ClassVar[tuple[str, str]]

    def _ranks(self, r: int, device: torch.device | str | None) -> None:
        self.register_buffer("low_rank", torch.ones(r, dtype=torch.bool, device=device))
        self.register_buffer("gate", None, persistent=False)

    @property
    def modules_of_factors(self) -> tuple[Any, Any]:
        """The two layers that the input passes."""
        first, second = (getattr(self, name) for name in self.names)
        return first, second

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        """The parameters that hold Vᵀ and U."""
        first, second = self.modules_of_factors
        return first.weight, second.weight

    @property
    def factors(self) -> Factors:
        """Vᵀ (R, in) and U (out, R), views of the parameters."""
        first, second = self.weights
        return Factors(first.flatten(1), second.flatten(1))

    @property
    def bias(self) -> Float[Tensor, " out"] | None:
        """b."""
        bias: Tensor | None = self.modules_of_factors[1].bias
        return bias

    @property
    def rank(self) -> int:
        """How many ranks are left."""
        return int(self.low_rank.sum())

    @classmethod
    def check(cls, in_features: int, out_features: int, **options: Any) -> None:
        if options.get("r") is not None:
            check_rank(options["r"], in_features, out_features)

    @classmethod
    def count(cls, in_features: int, out_features: int, **options: Any) -> int:
        r = options.get("r")
        return int(min(in_features, out_features) if r is None else r) * (in_features + out_features)

    @torch.no_grad()
    def _start(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take the factors of a dense weight, and its bias."""
        first, second = self.modules_of_factors
        found = balanced_factors(weight.flatten(1), len(self.low_rank))
        first.weight.copy_(found.first.view_as(first.weight))
        second.weight.copy_(found.second.view_as(second.weight))
        if bias is not None:
            second.bias.copy_(bias)

    def use(self, rank: int | None) -> None:
        """Train with the first ranks that are left; in evaluation all of them act.

        Args:
            rank: how many, from 1 up; None takes the gate off, for training that is not ordered.
        """
        if rank is None:
            self.gate = None
            return
        if not 1 <= rank <= self.rank:
            raise InputError(f"rank={rank}: the layer has {self.rank} ranks, give a number from 1 to that")
        self.gate = self.low_rank & (self.low_rank.cumsum(0) <= rank)

    def importance(self, hierarchical: bool = True) -> Float[Tensor, " r"]:
        """Product of the two norms of each rank, or of it and all after it; zero where a rank is not left."""
        u, v = self._norms(hierarchical)
        return u * v

    def group_lasso(self, hierarchical: bool = True) -> Float[Tensor, " r"]:
        """Sum of the two norms of each rank, or of it and all after it; zero where a rank is not left."""
        u, v = self._norms(hierarchical)
        return u + v

    def _norms(self, hierarchical: bool) -> tuple[Tensor, Tensor]:
        first, second = map(_whole, self.weights)
        return rank_norms(first.flatten(1), second.flatten(1), self.low_rank, hierarchical)

    @torch.no_grad()
    def shrink(self, threshold: float, hierarchical: bool = True) -> int:
        """Drop the ranks whose importance is below a threshold; the most important one stays.

        Args:
            threshold: ε.
            hierarchical: importance of a rank and all after it, or of the rank alone.

        Returns:
            How many were dropped.

        Raises:
            InputError: an importance is no number; nothing was dropped.
        """
        found = self.importance(hierarchical)
        if not bool(found.isfinite().all()):
            raise InputError("the factors hold NaN or infinity: lower the learning rate")
        keep = self.low_rank & (found >= threshold)
        if not bool(keep.any()):
            keep[found.argmax()] = True
        dropped = self.rank - int(keep.sum())
        self.low_rank.copy_(keep)
        self.clear()
        return dropped

    @torch.no_grad()
    def clear(self) -> None:
        """Set the factors of ranks that are not left to zero, where every gradient of the two is zero too."""
        for parameter, kept in self.kept():
            parameter.mul_(kept)

    def kept(self) -> list[tuple[Tensor, Tensor]]:
        """Each factor, and a mask of its shape or broadcast to it, in which dropped ranks are zero."""
        first, second = self.weights
        rows = self.low_rank.view(-1, *[1] * (first.dim() - 1))
        columns = self.low_rank.view(1, -1, *[1] * (second.dim() - 2))
        return [(first, _sharded_like(rows, first)), (second, _sharded_like(columns, second))]

    def cut(self, rank: int) -> MaestroLayer:
        """The layer of the first ranks that are left, with nothing else in it.

        Raises:
            InputError: a rank that the layer has not.
        """
        if not 1 <= rank <= self.rank:
            raise InputError(f"rank={rank}: the layer has {self.rank} ranks, give a number from 1 to that")
        first, second = self.modules_of_factors
        chosen = self.low_rank.nonzero().flatten()[:rank]
        layer = self._empty(rank)
        new_first, new_second = layer.modules_of_factors
        with torch.no_grad():
            new_first.weight.copy_(first.weight[chosen])
            new_second.weight.copy_(second.weight[:, chosen])
            if second.bias is not None:
                new_second.bias.copy_(second.bias)
        return layer.train(self.training)

    def cheapest(self) -> nn.Module:
        """The layer without dropped ranks, or the stock one where that has fewer numbers: r (in + out) > in · out."""
        layer = self.cut(self.rank)
        first, second = layer.factors
        dense = first.shape[1] * len(second)
        return layer if first.numel() + second.numel() <= dense else layer.to_module().train(self.training)

    def _empty(self, rank: int) -> MaestroLayer:
        """A layer of the same sizes and another rank, its values not set."""
        raise NotImplementedError

    @torch.no_grad()
    def dense_weight(self) -> Float[Tensor, "out in"]:
        """U Vᵀ, in float32 or wider."""
        first, second = self.factors
        wide = torch.promote_types(first.dtype, torch.float32)
        return second.to(wide) @ first.to(wide)

    def extra_repr(self) -> str:
        return f"r={len(self.low_rank)}"


def _whole(parameter: Tensor) -> Tensor:
    """A parameter whose rows FSDP2 has spread over processes, gathered; others as they are."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def _sharded_like(mask: Tensor, parameter: Tensor) -> Tensor:
    """A mask spread over processes as the parameter is."""
    if not hasattr(parameter, "device_mesh"):
        return mask
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    whole = mask.expand(parameter.shape).contiguous()
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements)
