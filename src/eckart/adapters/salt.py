"""SALT: the leading singular values are scaled and shifted, the rest gets a low-rank matrix in its own basis.

    W₀ = U diag(S) Vᵀ,   k = min(out, in),   k' = k − r
    W  = U ReLU([ diag(α ⊙ S_r + β)          0
                          0          diag(S_rest) + X Y ]) Vᵀ,      ΔW = W − W₀

    trainable_scale_A (r): α   trainable_shift_B (r): β   trainable_X (k', r_lora)   trainable_Y (r_lora, k')
    U (out, k)   S (k)   Vt (k, in)   frozen, rebuilt from W₀

Source: Elsayed et al., "SALT", 2025, arXiv:2503.16055.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.adapters._config import AdapterConfig
from eckart.adapters._kept import frozen_svd
from eckart.adapters._layers import LayerContext, LayerShape
from eckart.adapters._registry import register_adapter
from eckart.adapters._spanning import SpanningAdapter
from eckart.errors import InputError
from eckart.linalg.svd import DIGEST_TOLERANCE


@register_adapter(
    "salt",
    title="SALT",
    paper="Elsayed et al., 2025",
    arxiv="2503.16055",
    trains="scale and shift of the leading singular values, a low-rank matrix on the others",
    saves="the trained numbers and a digest of the singular vectors",
)
@dataclass
class SALTConfig(AdapterConfig):
    """SALT: scale and shift the leading singular values, add a low-rank matrix to the block of all others.

    Args:
        r: how many leading singular values are scaled and shifted, at most ``min(out, in)``.
        ratio: instead of r, that share of ``min(out, in)``, in (0, 1]; 0.1 when both are None.
        r_lora: rank of X Y on the other values, at most as many as there are; 8 when None, 0 leaves it out.
        relu: clamp the core element by element at zero (the paper's). Without it ΔW has rank r + r_lora.
        init: "zero" starts at W₀ (Y = 0), "small_random" near it (X, Y ~ 0.01 N(0, 1), the authors' first code).

    Raises:
        InputError: an option outside its range, or both r and ratio.

    Source: Elsayed et al., 2025, arXiv:2503.16055.
    """

    r: int | None = None
    ratio: float | None = None
    r_lora: int | None = None
    relu: bool = True
    init: Literal["zero", "small_random"] = "zero"

    knob: ClassVar[str] = "r_lora"
    needs_base: ClassVar[bool] = True
    checks: ClassVar[tuple[str, ...]] = ("digest",)
    learning_rates: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r is not None and self.ratio is not None:
            raise InputError(f"r ({self.r}) and ratio ({self.ratio}) are both given: leave one out")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise InputError(f"ratio is {self.ratio}: give a share in (0, 1]")
        if self.r_lora is not None and (self.r_lora < 0 or self.r_lora != int(self.r_lora)):
            raise InputError(f"r_lora is {self.r_lora}: give a whole number of at least 0")
        if self.init not in ("zero", "small_random"):
            raise InputError(f"init is {self.init!r}: give 'zero' or 'small_random'")

    def rank(self, shape: LayerShape) -> int:
        if self.r is not None or self.pattern(shape) is not None:
            return super().rank(shape)
        return max(1, int(shape.max_rank * (0.1 if self.ratio is None else self.ratio)))

    def trailing_rank(self, shape: LayerShape) -> int:
        """Columns of X for one layer: at most as many as values are left."""
        return min(8 if self.r_lora is None else self.r_lora, shape.max_rank - self.rank(shape))

    def knob_values(self, shapes: Sequence[LayerShape]) -> Iterable[int]:
        return range(max(shape.max_rank - self.rank(shape) for shape in shapes) + 1)

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        return sum(2 * self.rank(s) + 2 * self.trailing_rank(s) * (s.max_rank - self.rank(s)) for s in shapes)

    def saved_bytes(self, shapes: Sequence[LayerShape]) -> int:
        basis = sum(s.max_rank * (s.in_features + s.out_features + 1) for s in shapes)
        return 4 * (self.trainable_parameters(shapes) + 2 * len(shapes) + self.save_basis * basis)

    def build(self, weight: Float[Tensor, "out in"], layer: LayerContext) -> SALT:
        return SALT(weight, layer, self)


class SALT(SpanningAdapter):
    """ΔW = U (ReLU(core) − diag(S)) Vᵀ; without the ReLU, of rank r + r_lora, never forming the core."""

    U: Tensor
    S: Tensor
    Vt: Tensor
    digest: Tensor
    trainable_X: nn.Parameter | None
    trainable_Y: nn.Parameter | None

    def __init__(self, weight: Float[Tensor, "out in"], layer: LayerContext, config: SALTConfig) -> None:
        super().__init__(layer)
        self.relu = self.recompute = config.relu
        self.r, rho = config.rank(layer.shape), config.trailing_rank(layer.shape)
        u, s, vh, digest = frozen_svd(weight, layer.shape.max_rank, shared=not config.save_basis)
        for name, value in {"U": u, "S": s, "Vt": vh}.items():
            self.register_buffer(name, value, persistent=config.save_basis)
        self.register_buffer("digest", digest.clone())
        self.trainable_scale_A = nn.Parameter(torch.ones_like(self.S[: self.r]))
        self.trainable_shift_B = nn.Parameter(torch.zeros_like(self.S[: self.r]))
        rest, generator = s.numel() - self.r, layer.generator("trainable_X")
        x, y = torch.zeros(rest, rho), torch.zeros(rho, rest)
        if config.init == "small_random":
            x, y = (0.01 * torch.randn(t.shape, generator=generator) for t in (x, y))
        elif rho:
            x.uniform_(-math.sqrt(6 / rho), math.sqrt(6 / rho), generator=generator)
        for name, value in {"trainable_X": x, "trainable_Y": y}.items():
            self.register_parameter(name, nn.Parameter(value.to(self.S)) if value.numel() else None)

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        r, x, y = self.r, self.trainable_X, self.trainable_Y
        u, s, vt = (t.to(self.dtype) for t in (self.U, self.S, self.Vt))
        head = (self.trainable_scale_A - 1) * s[:r] + self.trainable_shift_B
        if self.relu:
            head = _clamp(head, s[:r])
        if x is None or y is None:
            return vt[:r], u[:, :r] * head
        if not self.relu:
            return torch.cat([vt[:r], y @ vt[r:]]), torch.cat([u[:, :r] * head, u[:, r:] @ x], dim=1)
        core = _clamp(x @ y, torch.diag(s[r:]))
        if self.layer.shape.out_features > self.layer.shape.in_features:  # the core meets the smaller side
            return torch.cat([head.unsqueeze(1) * vt[:r], core @ vt[r:]]), u
        return vt, torch.cat([u[:, :r] * head, u[:, r:] @ core], dim=1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """With the ReLU through Vᵀ and the core, so that a few inputs need no product of the core with a factor."""
        plain = self.relu and self.trainable_X is not None and self.active is None
        if not plain or self.layer.op.kind == "conv":
            return super().project(x)
        r, s, vt = self.r, self.S.to(self.dtype), self.Vt.to(self.dtype)
        h = self.layer.op.apply(x, vt.to(x.dtype) if x.is_floating_point() else vt)
        head = _clamp((self.trainable_scale_A - 1) * s[:r] + self.trainable_shift_B, s[:r])
        h = _Core.apply(h, head, self.trainable_X, self.trainable_Y, s[r:], None)  # type: ignore[no-untyped-call]
        return h, self.U.to(self.dtype).t()

    def decomposition(self) -> tuple[Float[Tensor, "k in"], Float[Tensor, " k"], Float[Tensor, "out k"]]:
        return self.Vt, self.S, self.U

    def spans(self) -> bool:
        plain = self.relu and self.trainable_X is not None and self.active is None and self.gate is None
        return plain and super().spans()

    def core(self, h: Float[Tensor, "tokens k"], scaling: float) -> Float[Tensor, "tokens k"]:
        r, s = self.r, self.S
        head = s[:r] + scaling * _clamp((self.trainable_scale_A - 1) * s[:r] + self.trainable_shift_B, s[:r])
        given = h, head, self.trainable_X, self.trainable_Y, s[r:], scaling
        through: Tensor = _Core.apply(*given)  # type: ignore[no-untyped-call]
        return through

    def core_cost(self, tokens: int) -> int:
        return 3 * tokens * (self.S.numel() - self.r) ** 2

    @property
    def factor_rank(self) -> int:
        if self.trainable_X is None:
            return self.r
        return self.S.numel() if self.relu else self.r + self.trainable_X.shape[1]

    def multiply_adds(self, tokens: int) -> tuple[int, int]:
        shape, k = self.layer.shape, self.S.numel()
        through, folded = super().multiply_adds(tokens)
        if self.trainable_X is None or self.trainable_Y is None:
            return through, folded
        if not self.relu:
            core = 2 * self.trainable_Y.numel() * (shape.in_features + shape.out_features)
            return through + core, folded + core
        through = tokens * (2 * k * (shape.in_features + shape.out_features) + 3 * (k - self.r) ** 2)
        core, product = k * (k - self.r) ** 2, shape.out_features * k * shape.in_features
        times = 2 if self.spans() else 3  # where W₀ + ΔW is made again in the backward pass
        return through, self.with_span(tokens, self.fold_cost(tokens) + times * (core + product))

    def regularization(self) -> Float[Tensor, ""]:
        """The authors' penalty of one layer, ‖α ⊙ S_r + β − S_r‖₂ + ‖X Y‖_F."""
        top = self.S[: self.r].to(self.dtype)
        penalty: Tensor = torch.linalg.vector_norm(
            self.trainable_scale_A * top + self.trainable_shift_B - top
        )
        if self.trainable_X is None or self.trainable_Y is None:
            return penalty
        trailing: Tensor = torch.linalg.vector_norm(self.trainable_X @ self.trainable_Y)
        return penalty + trailing

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}digest")
        if stored is not None and f"{prefix}U" not in state_dict:
            distance = (stored.to(self.digest.device).long() - self.digest.long()).abs()
            if bool((distance > DIGEST_TOLERANCE).any()):
                raise InputError(
                    f"the singular vectors of layer {self.layer.shape.name} are not those the checkpoint was trained "
                    "with: load it on the very weight it was trained on, or save it with save_basis=True"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Core(torch.autograd.Function):
    """h times diag(head) in its first columns and times Cᵀ in the others, with C = ReLU(diag(s) + X Y) − diag(s) or,
    given a scaling, diag(s) + scaling · C, which is formed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, head: Tensor, x: Tensor, y: Tensor, s: Tensor, scaling: float | None
    ) -> Tensor:
        ctx.save_for_backward(h, head, x, y, s)
        ctx.scaling = scaling
        first, rest = h.split([len(head), len(s)], -1)
        rest = rest @ _core(_sum(x, y, s, scaling), s, scaling).t().to(h.dtype)
        return torch.cat([(first * head.to(h.dtype)).to(rest.dtype), rest], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (h, head, x, y, s), (g,) = ctx.saved_tensors, gradients
        total = _sum(x, y, s, ctx.scaling)
        (h_first, h_rest), (g_first, g_rest) = (t.split([len(head), len(s)], -1) for t in (h, g))
        of_core = (g_rest.flatten(0, -2).t() @ h_rest.to(g.dtype).flatten(0, -2)).to(x.dtype)
        if ctx.scaling is None:
            of_core.masked_fill_(total <= torch.diag(-s), 0)
        else:
            of_core = torch.ops.aten.threshold_backward(of_core, total, 0)
            of_core = of_core if ctx.scaling == 1 else of_core.mul_(ctx.scaling)
        of_rest = g_rest @ _core(total, s, ctx.scaling).to(g.dtype)
        of_h = torch.cat([(g_first * head.to(g.dtype)).to(of_rest.dtype), of_rest], -1).to(h.dtype)
        of_head = (g_first * h_first.to(g.dtype)).flatten(0, -2).sum(0).to(head.dtype)
        return of_h, of_head, of_core @ y.t(), x.t() @ of_core, None, None


def _sum(x: Tensor, y: Tensor, s: Tensor, scaling: float | None) -> Tensor:
    """X Y or, given a scaling, diag(s) + X Y."""
    total = x @ y
    if scaling is not None:
        total.diagonal().add_(s)
    return total


def _core(total: Tensor, s: Tensor, scaling: float | None) -> Tensor:
    """The matrix of `_Core`, of what `_sum` gives and in its place."""
    if scaling is None:
        return _clamp(total, torch.diag(s))
    core = total.relu_()
    if scaling != 1:
        core.mul_(scaling).diagonal().add_(s, alpha=1 - scaling)
    return core


def _clamp(change: Tensor, start: Tensor) -> Tensor:
    """ReLU(start + change) − start without the rounding of that sum; NaN stays NaN."""
    return torch.where(change <= -start, -start, change)
