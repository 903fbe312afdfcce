"""AFM: keep the features of a layer, not its weights; for linear layers and for embedding tables.

    linear      y = W x + b, U Λ Uᵀ = Cov(y):   layer 1  U_kᵀ W, U_kᵀ b      layer 2  U_k, (I − U_kU_kᵀ) E[y]
    embedding   over look-ups, p_v the frequency of row v:  μ = Σ p_v E_v, U Λ Uᵀ = Σ p_v E_vE_vᵀ − μμᵀ
                table (E − 1μᵀ) U_k,  decoder U_k, μ

Source: Yu, Fu, Ding, Zhou & Wu, KDD 2024, arXiv:2405.18146.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.compression._calibration import Observed
from eckart.compression._census import Outline, matrix_shape, weight_matrix
from eckart.compression._layers import ACTIVATIONS, FactorizedEmbedding, FactorizedLinear
from eckart.compression._method import FactorCompressor, relative_error, root_share
from eckart.errors import InputError
from eckart.layers._replacing import install
from eckart.linalg.moments import Moments, moments_of_table
from eckart.linalg.whitened import Factors, output_spectrum


class TableFactors(NamedTuple):
    """Row v is ``small[v] upᵀ + mean``."""

    small: Float[Tensor, "v k"]
    up: Float[Tensor, "d k"]
    mean: Float[Tensor, " d"]


@dataclass
class AFM(FactorCompressor):
    """Atomic feature mimicking of linear layers and embedding tables.

    Args:
        act: what stands between the two layers: "relu", "gelu", "silu", "tanh", or None. With one the model has to be
            fine-tuned: at first it does not mimic anything.
        sign_fix: orient every direction so that layer 1 has a mean of at least 0, which ``act`` sees.
        embedding_rank: rank of the tables; None takes ⌊(1 − ratio) d⌋.

    Raises:
        InputError: an option outside its range.
    """

    act: str | None = None
    sign_fix: bool = True
    embedding_rank: int | None = None

    slug: ClassVar[str] = "afm"
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Embedding)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.act is not None and self.act not in ACTIVATIONS:
            raise InputError(f"act is {self.act!r}: give one of {', '.join(ACTIVATIONS)}, or None")
        if self.embedding_rank is not None and self.embedding_rank < 1:
            raise InputError(f"embedding_rank is {self.embedding_rank}: give at least 1")

    @property
    def adds_bias(self) -> bool:
        return True

    def check(self, outline: Outline) -> None:
        super().check(outline)
        if self.embedding_rank and not any(isinstance(m, nn.Embedding) for m in outline.layers.values()):
            raise InputError(
                f"embedding_rank is {self.embedding_rank}: {type(outline.model).__name__} has no embedding among the "
                "layers that are compressed: leave it out"
            )

    def replace(
        self, name: str, layer: nn.Module, observed: Observed | None
    ) -> tuple[nn.Module, float] | None:
        if isinstance(layer, nn.Embedding):
            return self._table(name, layer, observed)
        rank = self._planned.get(name)
        if rank is None or not isinstance(observed, Moments):
            return None
        weight, bias = weight_matrix(layer), getattr(layer, "bias", None)
        factors, inner = self.layers(weight, bias, rank, observed)
        assert factors.bias is not None
        shift = factors.bias if inner is None else factors.bias + factors.B @ inner
        whole = factors._replace(bias=shift)
        error = relative_error(weight, bias, whole, observed)
        return FactorizedLinear.of(factors, weight, inner, self.act), error

    def layers(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        rank: int,
        moments: Moments,
    ) -> tuple[Factors, Float[Tensor, " k"] | None]:
        """Layer 1 and layer 2, and the bias U_kᵀ b of layer 1 where there is one."""
        wide = weight.double()
        basis = output_spectrum(weight, moments.covariance).basis[:, :rank]
        mean = wide @ moments.mean + (0 if bias is None else bias.double())
        if self.sign_fix:
            basis = basis * oriented(basis, basis.T @ mean)
        left = mean - basis @ (basis.T @ mean)
        return Factors(basis.T @ wide, basis, left), None if bias is None else basis.T @ bias.double()

    def _table(
        self, name: str, layer: nn.Embedding, counts: Observed | None
    ) -> tuple[nn.Module, float] | None:
        rank = self.embedding_rank or self._planned.get(name)
        if rank is None or isinstance(counts, Moments) or counts is None:
            return None
        (rows, width), weight = matrix_shape(layer), layer.weight.detach()
        rank = min(rank, width)
        if rank * (rows + width) + width >= rows * width:
            return None
        factors = table_factors(weight, counts, rank)
        padding = layer.padding_idx
        if padding is not None and bool(weight[padding].any()):
            padding = None  # a row like any other
        new = FactorizedEmbedding(rows, width, rank, padding, weight.device, weight.dtype)
        with torch.no_grad():
            new.A.weight.copy_(factors.small)
            new.B.weight.copy_(factors.up)
            new.B.bias.copy_(factors.mean)
        share = counts.double() / counts.sum()
        change = (weight.double() - factors.small @ factors.up.T - factors.mean).square().sum(1) @ share
        whole = weight.double().square().sum(1) @ share
        return new, root_share(change, whole)


def table_factors(table: Float[Tensor, "v d"], counts: Float[Tensor, " v"], rank: int) -> TableFactors:
    """The best rank-k table for the look-ups that were counted.

    Args:
        table: E.
        counts: how often each row was looked up.
        rank: k.
    """
    moments = moments_of_table(table, counts)
    eye = torch.eye(table.shape[1], dtype=torch.float64, device=table.device)
    up = output_spectrum(eye, moments.covariance).basis[:, :rank]
    return TableFactors((table.double() - moments.mean) @ up, up, moments.mean)


def oriented(basis: Float[Tensor, "d k"], mean: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Signs that make each mean positive, or where it is 0 the entry of largest size."""
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True)).squeeze(0)
    lead = torch.where(mean != 0, mean, largest)
    return torch.where(lead < 0, -1.0, 1.0).to(basis)


def fuse(model: nn.Module, linear: str, embeddings: Sequence[str]) -> None:
    """Absorb the decoders of embeddings into the linear layer that reads them one beside the other.

    W^{(f)} ← W^{(f)} U^{(f)},   b ← b + Σ_f W^{(f)} μ^{(f)}

    The embeddings become plain tables of width k. Only right where nothing else reads them.

    Args:
        model: compressed by AFM.
        linear: name of the dense layer; its first inputs are the embeddings in this order, the rest stay.
        embeddings: names of the factorised embeddings.

    Raises:
        InputError: a module of another kind, or widths that do not fit; nothing is changed.
    """
    layer = model.get_submodule(linear)
    tables = [model.get_submodule(name) for name in embeddings]
    if not isinstance(layer, nn.Linear):
        raise InputError(
            f"linear {linear} is a {type(layer).__name__}: exclude the first layer from compression"
        )
    for name, table in zip(embeddings, tables, strict=True):
        if not isinstance(table, FactorizedEmbedding):
            raise InputError(f"embedding {name} is a {type(table).__name__}: name factorised embeddings")
        if table.padding_idx is not None:
            raise InputError(
                f"embedding {name} has a padding row, whose zero a thin table cannot hold: leave it out"
            )
    width = sum(table.embedding_dim for table in tables)  # type: ignore[misc]
    if width > layer.in_features:
        raise InputError(f"embeddings have {width} columns, {linear} reads {layer.in_features}: name fewer")
    weight = layer.weight.detach()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().clone()
    parts, start = [], 0
    for table in tables:
        assert isinstance(table, FactorizedEmbedding)
        part = weight[:, start : start + table.embedding_dim]
        parts.append(part @ table.B.weight.detach())
        bias += part @ table.B.bias.detach()
        start += table.embedding_dim
    fused = torch.cat([*parts, weight[:, start:]], dim=1)
    new = nn.Linear(fused.shape[1], len(fused), device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        new.weight.copy_(fused)
        new.bias.copy_(bias)
    for name, table in zip(embeddings, tables, strict=True):
        install(model, name, table.A)  # type: ignore[arg-type]
    install(model, linear, new)
