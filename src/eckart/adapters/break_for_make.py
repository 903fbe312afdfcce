"""Break-for-Make: a LoRA of which half of each factor is frozen, so that two of them can be put together.

    down (r, in) = [C | D]    C: the first columns, frozen    D: trained
    up  (out, r) = [A ; B]    A: the first rows, frozen       B: trained, zero at the start

    ΔW = s · up down = s · [[A C, A D], [B C, B D]]        A and C are rows of one matrix of orthonormal columns

A content is learned mainly in D, a style mainly in B, from the same seed and so with the same A and C; `fuse` joins the
D of one with the B of the other, and both are tuned briefly. Source: Xu et al., 2024, arXiv:2403.19456.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from eckart.adapters._base import LowRankAdapter
from eckart.adapters._config import AdapterConfig
from eckart.adapters._layers import LayerContext, LayerShape
from eckart.adapters._registry import register_adapter
from eckart.adapters._walk import walk
from eckart.errors import InputError

Role = Literal["content", "style"]


@register_adapter(
    "break-for-make",
    title="Break-for-Make",
    paper="Xu et al., 2024",
    arxiv="2403.19456",
    trains="half of each of two factors, r (in + out) / 2 a layer",
    saves="the trained halves; the frozen ones follow from the seed",
    aliases=("b4m",),
)
@dataclass
class BreakForMakeConfig(AdapterConfig):
    """Break-for-Make: half-frozen factors that compose a content and a style (Xu et al., 2024, arXiv:2403.19456).

    Args:
        r: rank; 8 when None. Never more than the frozen rows and columns, of which A and C are made.
        role: "content" trains B at a tenth of the learning rate, "style" D; None both alike, as after `fuse`.
        frozen_fraction: φ, the share of the columns of down and of the rows of up that is frozen, in [0, 1).
        network_alpha: s = network_alpha / r; s = 1 when None.
        zero_start: take the start off, so that ΔW = 0; not the authors'.

    Raises:
        InputError: an option outside its range.
    """

    r: int | None = None
    role: Role | None = None
    frozen_fraction: float = 0.5
    network_alpha: float | None = None
    zero_start: bool = False

    zero_at_start: ClassVar[bool] = False
    learning_rates: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.role not in ("content", "style", None):
            raise InputError(f"role is {self.role!r}: give 'content', 'style' or nothing")
        if not 0 <= self.frozen_fraction < 1:
            raise InputError(f"frozen_fraction is {self.frozen_fraction}: give a share in [0, 1)")

    def frozen(self, shape: LayerShape) -> tuple[int, int]:
        """The frozen columns of down and rows of up."""
        return int(self.frozen_fraction * shape.in_features), int(self.frozen_fraction * shape.out_features)

    def rank(self, shape: LayerShape) -> int:
        return min(super().rank(shape), sum(self.frozen(shape)) or shape.max_rank)

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        """Σ r (in − φ in + out − φ out)."""
        return sum(self.rank(s) * (s.in_features + s.out_features - sum(self.frozen(s))) for s in shapes)

    def saved_bytes(self, shapes: Sequence[LayerShape]) -> int:
        """4 for each trained number; with ``save_basis`` also the frozen halves, and what zero_start takes off."""
        basis = sum(
            self.rank(s) * (sum(self.frozen(s)) + self.zero_start * (s.in_features - self.frozen(s)[0]))
            for s in shapes
        )
        return 4 * (self.trainable_parameters(shapes) + self.save_basis * basis)

    def build(self, weight: Float[Tensor, "out in"], layer: LayerContext) -> BreakForMake:
        """A and C from one orthonormal matrix with a row for each, D normal with deviation 1/r, B = 0."""
        shape, r = layer.shape, self.rank(layer.shape)
        columns, rows = self.frozen(shape)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        q = _orthonormal(rows + columns, r, layer.generator("halves", r, rows, columns))
        d = torch.randn(r, shape.in_features - columns, generator=layer.generator("D", r)).div_(r)
        c, a = q[:columns].t().contiguous(), q[columns:].contiguous()
        return BreakForMake(self, a.to(dtype), c.to(dtype), d.to(dtype), layer)


def _orthonormal(n: int, r: int, generator: torch.Generator) -> Float[Tensor, "n r"]:
    """The rows, in random order, of a matrix with orthonormal columns; none where nothing is frozen."""
    if n == 0:
        return torch.empty(0, r, dtype=torch.float64)
    q, upper = torch.linalg.qr(torch.randn(n, r, generator=generator, dtype=torch.float64))
    q = q * torch.where(upper.diagonal() < 0, -1.0, 1.0).to(q)
    shuffled: Tensor = q[torch.randperm(n, generator=generator)]
    return shuffled


_RATES: dict[Role | None, dict[str, float]] = {"content": {"up_B": 0.1}, "style": {"down_D": 0.1}, None: {}}


class BreakForMake(LowRankAdapter):
    """ΔW = s · [A ; B] [C | D] with ``down_D (r, in − h)`` and ``up_B (out − h, r)`` trained."""

    down_C: Tensor
    up_A: Tensor
    down_0: Tensor | None

    def __init__(
        self,
        config: BreakForMakeConfig,
        a: Float[Tensor, "rows r"],
        c: Float[Tensor, "r columns"],
        d: Float[Tensor, "r trained"],
        layer: LayerContext,
    ) -> None:
        super().__init__(layer)
        self.scale = 1.0 if config.network_alpha is None else config.network_alpha / len(c)
        self.lr_scale = _RATES[config.role]
        start = d.clone() if config.zero_start else None
        for name, value in (("down_C", c), ("up_A", a), ("down_0", start)):
            self.register_buffer(name, value, persistent=config.save_basis)
        self.down_D = nn.Parameter(d)
        self.up_B = nn.Parameter(a.new_zeros(layer.shape.out_features - len(a), len(c)))

    def halves(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """(down, up)."""
        c, a = self.down_C.to(self.down_D.dtype), self.up_A.to(self.up_B.dtype)
        return torch.cat([c, self.down_D], 1), torch.cat([a, self.up_B])

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """(down, up); with ``zero_start`` also the start, to be taken off: A [C | D] − A [C | D₀] = A [0 | D − D₀]."""
        down, up = self.halves()
        if self.down_0 is None:
            return down, up
        a = self.up_A.to(up.dtype)
        lower = torch.cat([torch.zeros_like(a), self.up_B])
        upper = torch.cat([a, torch.zeros_like(self.up_B)])
        moved = torch.cat([torch.zeros_like(self.down_C), self.down_D - self.down_0.to(down.dtype)], 1)
        return torch.cat([down, moved.to(down.dtype)]), torch.cat([lower, upper], 1)

    @property
    def factor_rank(self) -> int:
        """r, twice that with ``zero_start``."""
        return len(self.down_D) * (1 if self.down_0 is None else 2)


def correspondence_gradients(
    model: nn.Module, primary: Float[Tensor, ""], correspondence: Float[Tensor, ""], role: Role
) -> None:
    """The first stage: the gradient of each loss for the half that it is to train, to be stepped by an optimiser.

    Args:
        model: a model with adapters of this method, the ones of the role active.
        primary: the loss of the content (or style) that is learned; it trains D (or B).
        correspondence: the mean loss of the samples of the other kind; it trains B (or D).
        role: "content" or "style".

    Raises:
        InputError: another role; no adapter of this method is active.
    """
    if role not in _RATES or role is None:
        raise InputError(f"role is {role!r}: give 'content' or 'style'")
    found = list(_of(model, None))
    own, other = ("down_D", "up_B") if role == "content" else ("up_B", "down_D")
    mine = [getattr(adapter, own) for _, adapter in found]
    theirs = [getattr(adapter, other) for _, adapter in found]
    gradients = [
        *torch.autograd.grad(primary, mine, retain_graph=True),
        *torch.autograd.grad(correspondence, theirs),
    ]
    for parameter, gradient in zip([*mine, *theirs], gradients, strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def fuse(
    model: PeftModel, content: str = "content", style: str = "style", adapter_name: str = "fused"
) -> None:
    """A new adapter, active, of B of the style and D of the content.

    Args:
        model: a model that has both.
        content: the adapter that learned the content.
        style: the one that learned the style.
        adapter_name: of the new one.

    Raises:
        InputError: they differ in more than their role; an adapter has the new name. The model is left as it was.
    """
    if adapter_name in model.peft_config:
        raise InputError(f"adapter_name is {adapter_name!r}, which is in this model: choose another")
    pairs = {name: dict(_of(model, name)) for name in (content, style)}
    if pairs[content].keys() != pairs[style].keys():
        raise InputError(f"{content!r} and {style!r} adapt other layers: train both on the same")
    for layer, first in pairs[content].items():
        second = pairs[style][layer]
        alike = first.scale == second.scale and (first.down_0 is None) == (second.down_0 is None)
        for name in ("up_A", "down_C"):
            alike = alike and torch.equal(getattr(first, name), getattr(second, name))
        if not alike:
            raise InputError(
                f"{content!r} and {style!r} have other frozen halves in layer {layer}: train both with one seed, rank, "
                "frozen_fraction, network_alpha and zero_start"
            )
    config = dataclasses.replace(
        cast(BreakForMakeConfig, model.peft_config[style]), role=None, inference_mode=False
    )
    model.add_adapter(adapter_name, config)
    model.set_adapter(adapter_name)
    with torch.no_grad():
        for layer, adapter in _of(model, adapter_name):
            adapter.down_D.copy_(pairs[content][layer].down_D)
            adapter.up_B.copy_(pairs[style][layer].up_B)
            for name, half in pairs[style][layer].named_buffers():
                getattr(adapter, name).copy_(half)


def precondition(model: nn.Module, reg: float = 1e-6) -> None:
    """The second stage: gradients of the trained halves made independent of how ΔW is split into its factors.

    ĝ_down = (upᵀ up + δ I)⁻¹ g_down        ĝ_up = g_up (down downᵀ + δ I)⁻¹

    Call it between ``backward`` and the optimiser's step. A factor of norm ‖upᵀ up‖ ≤ 1e-6 counts as the identity.

    Args:
        model: a model with adapters of this method; the active ones are taken.
        reg: δ, above 0.

    Raises:
        InputError: δ is not above 0; no adapter of this method is active.
    """
    if not reg > 0:
        raise InputError(f"reg is {reg}: give a number above 0")
    with torch.no_grad():
        for _, adapter in _of(model, None):
            down, up = adapter.halves()
            for parameter, gram, side in (
                (adapter.down_D, up.t() @ up, 0),
                (adapter.up_B, down @ down.t(), 1),
            ):
                if parameter.grad is None or not torch.linalg.matrix_norm(gram) > 1e-6:
                    continue
                gram = gram + reg * torch.eye(len(gram)).to(gram)
                gradient = parameter.grad.t() if side else parameter.grad
                solved = torch.cholesky_solve(gradient, torch.linalg.cholesky(gram))
                parameter.grad = (solved.t() if side else solved).contiguous()


def _of(model: nn.Module, adapter_name: str | None) -> Iterator[tuple[str, BreakForMake]]:
    """The adapters of this method, by layer."""
    found: Iterable[tuple[str, BreakForMake]] = (
        (layer, adapter)
        for layer, _, _, adapter in walk(model, adapter_name)
        if isinstance(adapter, BreakForMake)
    )
    first = next(iterator := iter(found), None)
    if first is None:
        raise InputError(f"adapter {adapter_name or '(the active one)'} is not of break-for-make")
    yield first
    yield from iterator
