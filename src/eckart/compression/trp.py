"""TRP: convolutions that are trained to be of low rank, then factorised with nearly no loss.

    every m-th iteration  T ← D(T), the truncated SVD of the filters as matrices (NC, VH or ND)
    its gradient          ∇f + λ U_k V_kᵀ, a sub-gradient of the nuclear norm of D(T)
    at the end            two thin convolutions (NC, VH), or a sum of pointwise and depthwise ones (ND)

Lifecycle of `TrainedRankPruning`: before a training forward pass it projects; before the optimiser's step it adds the
sub-gradient; after the step it counts. The full weights keep training, so that a rank can come back.

Source: Xu et al., IJCAI 2020, arXiv:2004.14566.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from eckart.compression._calibration import Observed
from eckart.compression._census import Outline, refuse_compressed
from eckart.compression._convolutions import DecoupledConv2d, FactorizedConv2d
from eckart.compression._method import Change, Compressor, LayerRow, root_share
from eckart.errors import InputError
from eckart.linalg.filters import (
    FilterSVD,
    Scheme,
    filter_svd,
    from_matrices,
    multiply_adds,
    nuclear_subgradient,
    projected,
    ranks_above,
    ranks_for_energy,
)


@dataclass
class TRP(Compressor):
    """Factorise convolutions by the SVD of their filters; needs no data.

    Give a ratio, an energy or a value. 1×1 and grouped convolutions, and the first one, stay.

    Args:
        scheme: "NC" by channels, "VH" by space, "ND" network decoupling.
        energy: instead of a ratio, the least ranks that hold this share of Σσ², in (0, 1].
        value: instead of a ratio, keep singular values of at least this share of the largest, in (0, 1).

    Raises:
        InputError: an option outside its range.
    """

    scheme: Scheme = "NC"
    energy: float | None = None
    value: float | None = None

    slug: ClassVar[str] = "trp"
    instead: ClassVar[tuple[str, ...]] = ("energy", "value")
    calibrated: ClassVar[bool] = False
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Conv2d,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scheme not in ("NC", "VH", "ND"):
            raise InputError(f"scheme is {self.scheme!r}: give NC, VH or ND")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise InputError(f"energy is {self.energy}: give a share in (0, 1]")
        if self.value is not None and not 0 < self.value < 1:
            raise InputError(f"value is {self.value}: give a share of the largest singular value in (0, 1)")
        self._ratio: float | None = None

    def plan(self, outline: Outline, ratio: float | None, influence: Sequence[float]) -> None:
        self._ratio = ratio
        names = set(eligible(outline.model))
        if not names & set(outline.layers):
            raise InputError("no convolution can be factorised: 1×1, grouped and first ones stay as they are")
        if ratio is not None and all(
            self._rank(layer) == 0 for n, layer in outline.layers.items() if n in names
        ):
            raise InputError(f"ratio is {ratio}: no rank meets it for scheme {self.scheme}; lower it")

    def _rank(self, layer: nn.Module, svd: FilterSVD | None = None) -> int:
        shape: torch.Size = layer.weight.shape  # type: ignore[assignment]
        if self._ratio is not None:
            budget = (1 - self._ratio) * shape.numel() / multiply_adds(self.scheme, shape, 1)
            return min(int(budget + 1e-9), _full_rank(self.scheme, shape))
        assert svd is not None
        if self.energy is not None:
            ranks = ranks_for_energy(svd.S, self.energy)
        else:
            ranks = ranks_above(svd.S, (self.value or 0) * float(svd.S.max()))
        return int(ranks.max())

    def compress(
        self, block: str, outline: Outline, observed: Mapping[str, Observed]
    ) -> tuple[dict[str, Change], list[LayerRow]]:
        changes, rows = {}, []
        names = set(eligible(outline.model))
        for name, layer in outline.inside(block).items():
            if name not in names:
                continue
            assert isinstance(layer, nn.Conv2d)
            svd = filter_svd(layer.weight.detach(), self.scheme)
            rank, shape = self._rank(layer, svd), layer.weight.shape
            before = sum(p.numel() for p in layer.parameters())
            sizes = shape[0], shape[1:].numel()
            if rank == 0 or multiply_adds(self.scheme, shape, rank) >= shape.numel():
                rows.append(LayerRow(name, "dense", *sizes, None, before, before, 0.0))
                continue
            module = factorized(layer, self.scheme, rank)
            changes[name] = Change(module, module.spec)
            lost = root_share(svd.S[:, rank:].square().sum(), svd.S.square().sum())
            after = sum(p.numel() for p in module.parameters())
            rows.append(LayerRow(name, module.kind, *sizes, rank, before, after, lost))
        return changes, rows


class TrainedRankPruning:
    """Projects the convolutions of a model every ``period`` iterations, and adds the nuclear norm's sub-gradient.

    Args:
        model: its convolutions but the first, the 1×1 and the grouped ones are projected.
        optimizer: SGD gets the sub-gradient in its gradient; others, which would normalise it away, get the step
            T ← T − lr λ U_kV_kᵀ beside their own.
        scheme: as in `TRP`.
        energy: D keeps the least rank with this share of Σσ², in (0, 1].
        period: m; 0 never projects.
        nuclear_weight: λ.

    Raises:
        InputError: an option outside its range, a model that is factorised already or has no such convolution.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheme: Scheme = "NC",
        energy: float = 0.9,
        period: int = 20,
        nuclear_weight: float = 3e-4,
    ) -> None:
        TRP(scheme=scheme, energy=energy)
        if period < 0 or nuclear_weight < 0:
            raise InputError(f"period is {period}, nuclear_weight {nuclear_weight}: give none below 0")
        refuse_compressed(model)
        self.names = eligible(model)
        if not self.names:
            raise InputError("no convolution can be projected: 1×1, grouped and first ones are left alone")
        self.model, self.scheme, self.energy = model, scheme, energy
        self.period, self.nuclear_weight = period, nuclear_weight
        self.iteration = 0
        self._projected_at = -1
        self._subgradients: dict[str, Tensor] = {}
        self._handles: list[Any] = [
            model.register_forward_pre_hook(self._before_forward),
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def _weights(self) -> dict[str, Tensor]:
        return {name: self.model.get_submodule(name).weight for name in self.names}  # type: ignore[misc]

    def _before_forward(self, *_: Any) -> None:
        due = self.period and self.iteration % self.period == 0 and self._projected_at != self.iteration
        if due and self.model.training:
            self.project()
            self._projected_at = self.iteration

    @torch.no_grad()
    def project(self) -> dict[str, int]:
        """Put D(T) in the place of every weight, and keep its sub-gradient; the ranks by name."""
        ranks = {}
        for name, weight in self._weights().items():
            svd = filter_svd(weight, self.scheme)
            kept = ranks_for_energy(svd.S, self.energy)
            weight.copy_(from_matrices(projected(svd, kept), self.scheme, weight.shape))
            if self.nuclear_weight:
                direction = from_matrices(nuclear_subgradient(svd, kept), self.scheme, weight.shape)
                self._subgradients[name] = direction.to(weight.dtype)
            ranks[name] = int(kept.max())
        return ranks

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not self._subgradients or self._projected_at != self.iteration:
            return
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for name, weight in self._weights().items():
            direction = self._subgradients[name]
            if isinstance(optimizer, torch.optim.SGD):
                weight.grad = direction * 0 if weight.grad is None else weight.grad
                weight.grad.add_(direction, alpha=self.nuclear_weight)
            else:
                weight.sub_(direction, alpha=self.nuclear_weight * float(rates.get(id(weight), 0.0)))
        self._subgradients = {}

    def _after_step(self, *_: Any) -> None:
        self.iteration += 1

    def detach(self) -> None:
        """Take the hooks off; the model is as it was but for its weights."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, int]:
        """Where the count stands."""
        return {"iteration": self.iteration}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting from there."""
        self.iteration = int(state["iteration"])


def eligible(model: nn.Module) -> list[str]:
    """Names of the convolutions that are projected and factorised: H×W above 1×1, one group, zero padding, not the
    first of the model."""
    convolutions = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    return [
        name
        for name, m in convolutions[1:]
        if type(m) is nn.Conv2d and m.kernel_size != (1, 1) and m.groups == 1 and m.padding_mode == "zeros"
    ]


def factorized(layer: nn.Conv2d, scheme: Scheme, rank: int) -> FactorizedConv2d | DecoupledConv2d:
    """The factors of a convolution at a rank, √σ on both sides; its stride is split as its kernel is.

    Args:
        layer: (N, C, H, W), one group.
        scheme: how its filters are seen as matrices.
        rank: r.
    """
    weight = layer.weight.detach()
    n, c, h, w = weight.shape
    u, s, vh = filter_svd(weight, scheme)
    left = u[..., :rank] * s[..., None, :rank].sqrt()
    right = s[..., :rank, None].sqrt() * vh[..., :rank, :]
    options: dict[str, Any] = {
        "kernel_size": layer.kernel_size,
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "bias": layer.bias is not None,
        "device": weight.device,
        "dtype": weight.dtype,
    }
    with torch.no_grad():
        if scheme == "ND":
            new = DecoupledConv2d(c, n, rank, **options)
            for i, (pw, dw) in enumerate(new._paths()):
                pw.weight.copy_(left[:, :, i].reshape(n, c, 1, 1))
                dw.weight.copy_(right[:, i].reshape(n, 1, h, w))
            if layer.bias is not None:
                new._paths()[0][1].bias.copy_(layer.bias)  # type: ignore[union-attr]
            return new
        pair = FactorizedConv2d(c, n, rank, **options, scheme=scheme)
        if scheme == "NC":
            pair.A.weight.copy_(right[0].reshape(rank, c, h, w))
            pair.B.weight.copy_(left[0].reshape(n, rank, 1, 1))
        else:
            pair.A.weight.copy_(left[0].reshape(c, h, rank).permute(2, 0, 1).unsqueeze(-1))
            pair.B.weight.copy_(right[0].reshape(rank, n, w).permute(1, 0, 2).unsqueeze(2))
        if layer.bias is not None:
            pair.B.bias.copy_(layer.bias)  # type: ignore[union-attr]
        return pair


def _full_rank(scheme: Scheme, shape: torch.Size) -> int:
    n, c, h, w = shape
    sizes: dict[Literal["NC", "VH", "ND"], tuple[int, int]] = {
        "NC": (n, c * h * w),
        "VH": (c * h, n * w),
        "ND": (c, h * w),
    }
    return min(sizes[scheme])
