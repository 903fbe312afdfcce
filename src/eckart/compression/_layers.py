"""Layers of fewer numbers, each of which can say in JSON what it is (`spec`) and be built again from that.

FactorizedLinear      y = act(x Aᵀ + a) Bᵀ + b             in place of nn.Linear and of transformers' Conv1D
FactorizedEmbedding   row v = A_v Bᵀ + b                   in place of nn.Embedding
FactorizedConv2d      two convolutions with r channels between them: "NC" H×W then 1×1, "VH" H×1 then 1×W
DecoupledConv2d       a sum of r paths, 1×1 then depthwise H×W
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.compression._layout import by_rows, faster_by_columns
from eckart.errors import InputError
from eckart.linalg.whitened import Factors

Spec = dict[str, Any]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class CompressedLayer(nn.Module):
    """What the layers have in common: a kind, and a spec from which `build_layer` makes one of the same shape."""

    kind: ClassVar[str]

    @property
    def spec(self) -> Spec:
        """The layer's shape and options, as JSON holds them."""
        raise NotImplementedError

    @classmethod
    def build(cls, spec: Spec, device: torch.device | None, dtype: torch.dtype | None) -> CompressedLayer:
        """A layer of this spec, its numbers not yet set."""
        options = {name: value for name, value in spec.items() if name != "kind"}
        layer: Any = cls
        return layer(**options, device=device, dtype=dtype)  # type: ignore[no-any-return]

    def dense(self) -> nn.Module:
        """One ordinary layer with the same outputs.

        Raises:
            InputError: there is none, since something that is not linear stands between the factors.
        """
        raise NotImplementedError


class FactorizedLinear(CompressedLayer):
    """y = act(x Aᵀ + a) Bᵀ + b, with A (rank, in) and B (out, rank), two ordinary linear layers."""

    kind = "linear"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        inner_bias: bool = False,
        act: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.A = nn.Linear(in_features, rank, bias=inner_bias, device=device, dtype=dtype)
        self.act = None if act is None else ACTIVATIONS[act]()
        self.act_name = act
        self.B = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    def train(self, mode: bool = True) -> FactorizedLinear:
        """As every module's; what is to be trained lies by rows."""
        super().train(mode)
        weight = getattr(self.B, "weight", None)
        if mode and weight is not None and weight.requires_grad:
            by_rows(weight)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FactorizedLinear:
        """As every module's: another dtype or device, where columns may not be faster."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        weight = getattr(self.B, "weight", None)
        if weight is not None and not faster_by_columns(weight):
            by_rows(weight)
        return self

    @classmethod
    def of(cls, factors: Factors, like: Tensor, inner: Tensor | None = None, act: str | None = None) -> Any:
        """The layer of these factors, in the dtype and on the device of the weight it replaces.

        Args:
            factors: A, B and the bias.
            like: the weight that is replaced.
            inner: a, or None.
            act: what stands between the factors, or None.
        """
        (rank, width), height = factors.A.shape, factors.B.shape[0]
        layer = cls(
            width,
            height,
            rank,
            factors.bias is not None,
            inner is not None,
            act,
            device=like.device,
            dtype=like.dtype,
        )
        with torch.no_grad():
            layer.A.weight.copy_(factors.A)
            layer.B.weight.copy_(factors.B)
            if factors.bias is not None:
                layer.B.bias.copy_(factors.bias)
            if inner is not None:
                layer.A.bias.copy_(inner)
        return layer

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """B A, formed on every access: for code that reads a layer's weight instead of calling it."""
        return product_of(self)

    @property
    def bias(self) -> Float[Tensor, " out"] | None:
        """The bias that goes with `weight`."""
        inner: Tensor | None = self.A.bias
        outer: Tensor | None = self.B.bias
        if inner is None:
            return outer
        return nn.functional.linear(inner, _weight_of(self.B), outer)

    @property
    def spec(self) -> Spec:
        return {
            "kind": self.kind,
            "in_features": self.in_features,
            "out_features": self.out_features,
            "rank": self.rank,
            "bias": self.B.bias is not None,
            "inner_bias": self.A.bias is not None,
            "act": self.act_name,
        }

    def forward(self, x: Tensor) -> Tensor:
        modules = self._modules  # `self.A` would search three dictionaries for it
        first, act, second = modules["A"], self.act, modules["B"]
        if act is None and not torch.compiler.is_compiling() and is_bare(first) and is_bare(second):
            (a, b), (c, d) = first._parameters.values(), second._parameters.values()  # type: ignore[union-attr]
            return nn.functional.linear(nn.functional.linear(x, a, b), c, d)  # type: ignore[arg-type]
        h = self.A(x)
        return self.B(h if act is None else act(h))  # type: ignore[no-any-return]

    def dense(self) -> nn.Linear:
        if self.act is not None:
            raise InputError(f"a layer with act={self.act_name!r} between its factors has no dense form")
        weight, bias = self.weight, self.bias
        out, width = weight.shape
        layer = nn.Linear(width, out, bias=bias is not None, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(product_of(self, torch.float64))
            if bias is not None:
                layer.bias.copy_(bias)
        return layer

    def extra_repr(self) -> str:
        return f"rank={self.rank}"


def is_bare(layer: nn.Module | None) -> bool:
    """Whether a call of this layer is its product and nothing else, so that the call can be saved: it takes longer than
    the product where one token is made at a time.
    """
    return (
        type(layer) is nn.Linear
        and not (layer._forward_pre_hooks or layer._forward_hooks)
        and not (layer._backward_pre_hooks or layer._backward_hooks)
        and "forward" not in layer.__dict__
    )


def _weight_of(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight


def product_of(layer: FactorizedLinear, dtype: torch.dtype | None = None) -> Float[Tensor, "out in"]:
    """B A, in the layer's dtype or a wider one. A layer's own methods never read its factors' weights, only call them:
    so adapters may be put on the factors.
    """
    first, second = (_weight_of(factor).to(dtype) for factor in (layer.A, layer.B))
    return second @ first


class FactorizedEmbedding(CompressedLayer):
    """Row v is A_v Bᵀ + b, with a table A (num, rank) and a decoder B (dim, rank); the padding row is zero."""

    kind = "embedding"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        padding_idx: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.rank = num_embeddings, embedding_dim, rank
        self.padding_idx = padding_idx
        self.A = nn.Embedding(num_embeddings, rank, padding_idx, device=device, dtype=dtype)
        self.B = nn.Linear(rank, embedding_dim, device=device, dtype=dtype)

    @property
    def weight(self) -> Float[Tensor, "num dim"]:
        """All rows, formed on every access."""
        return self(torch.arange(self.num_embeddings, device=self.A.weight.device))  # type: ignore[no-any-return]

    @property
    def spec(self) -> Spec:
        names = ("kind", "num_embeddings", "embedding_dim", "rank", "padding_idx")
        return {name: getattr(self, name) for name in names}

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.B(self.A(ids))
        return (
            rows
            if self.padding_idx is None
            else rows.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0.0)
        )

    def dense(self) -> nn.Embedding:
        with torch.no_grad():
            rows = self.weight
            return nn.Embedding(rows.shape[0], rows.shape[1], self.padding_idx, _weight=rows)

    def extra_repr(self) -> str:
        return f"rank={self.rank}"
