"""RandLoRA: ΔW = s · Σⱼ Bⱼ Λⱼ A Γⱼ, full rank from trained diagonals Λⱼ, Γⱼ of random bases that all layers share.

With m = min(out, in), M = max(out, in) and n = ⌈m/r⌉ bases, U = B̄ Ā has shape (M, m):

    randlora_B (D_max, N, r) ──[:M, :n]──> B̄ (M, n·r)
    randlora_A (r, 1, D_min) ──[…, :m]───> λ[k, j] · A[k, b] · γ[j, b] ──> Ā (n·r, m)

ΔW = s U where in is the small side (or the layer is square), s Uᵀ otherwise. A smaller r means more bases and more
trained numbers. Source: Albert et al., 2025, arXiv:2502.00987; order of the columns and bases as in PEFT's RandLoRA.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from jaxtyping import Float
from peft import RandLoraConfig as PeftRandLoraConfig
from torch import Tensor, nn

from eckart.adapters._base import LowRankAdapter
from eckart.adapters._budget import target_shapes
from eckart.adapters._checkpoint import MODEL_PREFIX
from eckart.adapters._config import AdapterConfig
from eckart.adapters._from_peft import our_key, peft_options
from eckart.adapters._layers import LayerContext, LayerShape
from eckart.adapters._registry import register_adapter
from eckart.errors import InputError
from eckart.linalg.bases import BasisLaw, ScaledLinear, ScaledProduct, random_bases


@register_adapter(
    "randlora",
    title="RandLoRA",
    paper="Albert et al., 2025",
    arxiv="2502.00987",
    trains="two diagonals for each of ⌈min(out, in)/r⌉ random bases",
    saves="the diagonals; the bases follow from the seed",
)
@dataclass
class RandLoRAConfig(AdapterConfig):
    """RandLoRA: full-rank updates from trained scalings of shared random bases (Albert et al., 2025, arXiv:2502.00987).

    Args:
        r: rank of one basis; 32 when None. Smaller trains more numbers. ``seed`` is PEFT's ``projection_prng_key``.
        randlora_alpha: α of the scaling; 20 r when None.
        scale_mode: ``"peft"`` α/r, ``"paper"`` α/(r √n).
        basis: ``"uniform"``, ``"normal"``, or ternary: ``"sparse"`` (a third of the entries not zero),
            ``"very-sparse"`` (1/√D_min of them).
        basis_order: how Ā pairs with B̄: ``"peft"`` as PEFT's checkpoints need, ``"paper"`` as the equation says.
        share_A: one A for all bases; False draws one for each.
        num_bases: at most this many bases a layer, for a rank of at most r · num_bases; ⌈min(out, in)/r⌉ when None.

    Raises:
        InputError: an option outside its range.
    """

    r: int | None = None
    randlora_alpha: float | None = None
    scale_mode: Literal["peft", "paper"] = "peft"
    basis: BasisLaw = "uniform"
    basis_order: Literal["peft", "paper"] = "peft"
    share_A: bool = True
    num_bases: int | None = None

    default_r: ClassVar[int] = 32
    any_rank: ClassVar[bool] = True
    monotone: ClassVar[bool] = False
    peft_types: ClassVar[tuple[str, ...]] = ("RANDLORA",)
    checks: ClassVar[tuple[str, ...]] = ("basis_check",)
    learning_rates: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (
            ("scale_mode", ("peft", "paper")),
            ("basis", get_args(BasisLaw)),
            ("basis_order", ("peft", "paper")),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}: give one of {', '.join(known)}")
        if self.num_bases is not None and self.num_bases < 1:
            raise InputError(f"num_bases is {self.num_bases}: give at least 1, or None for full rank")

    def bases(self, shape: LayerShape) -> int:
        """n, the number of bases of a layer."""
        return min(math.ceil(shape.max_rank / self.rank(shape)), self.num_bases or shape.max_rank)

    def basis_shape(self, shapes: Sequence[LayerShape]) -> tuple[int, int, int, int]:
        """(D_max, D_min, N, r) of bases that every layer can take its part of."""
        sides = max(s.out_features for s in shapes), max(s.in_features for s in shapes)
        r = max(self.rank(s) for s in shapes)
        return max(sides), min(sides), min(math.ceil(min(sides) / r), self.num_bases or min(sides)), r

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        """Σ n (r + m)."""
        return sum(
            count * self.bases(shape) * (self.rank(shape) + shape.max_rank)
            for shape, count in self.alike(shapes)
        )

    def saved_bytes(self, shapes: Sequence[LayerShape]) -> int:
        """4 for each trained number, a check of 8 numbers, and with ``save_basis`` the bases, once."""
        large, small, n, r = self.basis_shape(shapes)
        bases = r * small * (1 if self.share_A else n) + large * n * r
        return 4 * (self.trainable_parameters(shapes) + 8 + bases * self.save_basis)

    def build(self, weight: Float[Tensor, "out in"], layer: LayerContext) -> RandLoRA:
        """λ = 0 and γ = 1/max(n, m), so that ΔW = 0."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return RandLoRA(self, dtype, layer)

    @classmethod
    def read_peft(
        cls, saved: dict[str, Any], tensors: dict[str, Tensor], base: nn.Module
    ) -> tuple[RandLoRAConfig, dict[str, Tensor]]:
        """PEFT's RandLoRA: its bases are drawn again from its key, and kept only where that gives others."""
        read = ("r", "randlora_alpha", "randlora_dropout", "projection_prng_key", "save_projection")
        options = peft_options(saved, PeftRandLoraConfig, (*read, "sparse", "very_sparse", "init_weights"))
        config = cls(
            r=saved["r"],
            randlora_alpha=saved["randlora_alpha"],
            basis="very-sparse"
            if saved.get("very_sparse")
            else "sparse"
            if saved.get("sparse")
            else "uniform",
            seed=saved["projection_prng_key"],
            dropout=saved.get("randlora_dropout") or 0.0,
            **options,
        )
        state: dict[str, Tensor] = {}
        bases: dict[str, Tensor] = {}
        for key, value in tensors.items():
            layer, _, name = key.rpartition(".")
            if name in ("randlora_A", "randlora_B"):
                bases[name] = value
            else:
                state[our_key(layer, name) if name.startswith("randlora_") else key] = value
        shapes = target_shapes(base, config)
        drawn = RandomBases(config, *config.basis_shape(shapes), torch.float32)
        names = ("randlora_A", "randlora_B")
        kept = {name: bases.get(name, getattr(drawn, name)).float() for name in names}
        config.save_basis = any(not torch.equal(kept[name], getattr(drawn, name)) for name in names)
        ends = [part for basis in kept.values() for part in (basis.flatten()[:2], basis.flatten()[-2:])]
        shared = {"basis_check": torch.cat(ends), **(kept if config.save_basis else {})}
        state.update(
            {
                our_key(f"{MODEL_PREFIX}{shapes[0].name}", f"bases.{name}"): value
                for name, value in shared.items()
            }
        )
        return config, state


class RandomBases(nn.Module):
    """The frozen A and B of all layers: saved, once, with ``save_basis``; otherwise drawn again and held to a check."""

    randlora_A: Tensor
    randlora_B: Tensor
    basis_check: Tensor

    def __init__(
        self, config: RandLoRAConfig, large: int, small: int, n: int, r: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        a, b = random_bases(config.seed, config.basis, (r, 1 if config.share_A else n, small), (large, n, r))
        if dead := int((a == 0).flatten(0, 1).all(0).sum()):
            warnings.warn(
                f"{dead} of {small} coordinates have no entry in the {config.basis} basis A and are never "
                f"updated: raise r above {r} or take the uniform basis",
                stacklevel=2,
            )
        self.register_buffer("randlora_A", a.to(dtype), persistent=config.save_basis)
        self.register_buffer("randlora_B", b.to(dtype), persistent=config.save_basis)
        flats = self.randlora_A.flatten(), self.randlora_B.flatten()
        ends = [flat[torch.tensor([0, 1, -2, -1]) % flat.numel()] for flat in flats]
        self.register_buffer("basis_check", torch.cat(ends))
        self._cast: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def like(self, parameter: Tensor) -> tuple[Float[Tensor, "r _ D_min"], Float[Tensor, "D_max N r"]]:
        """A and B on a parameter's device and in its dtype, converted once."""
        if (self.randlora_A.device, self.randlora_A.dtype) == (parameter.device, parameter.dtype):
            return self.randlora_A, self.randlora_B
        key = parameter.device, parameter.dtype
        if key not in self._cast:
            self._cast[key] = self.randlora_A.to(parameter), self.randlora_B.to(parameter)
        return self._cast[key]

    def _apply(self, fn: Any, recurse: bool = True) -> RandomBases:
        self._cast.clear()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + "basis_check")
        if saved is not None and prefix + "randlora_A" not in state_dict:
            ours = self.basis_check.to(saved)
            if saved.shape != ours.shape or not torch.allclose(saved, ours, rtol=2e-2, atol=2e-2):
                raise InputError(
                    f"{prefix}basis_check: the bases that the seed gives here are not those of the checkpoint; give "
                    "the seed, r and target_modules it was trained with, or save it with save_basis=True"
                )
        self._cast.clear()
        super()._load_from_state_dict(state_dict, prefix, *args)


class RandLoRA(LowRankAdapter):
    """U = B̄ Ā by columns of the shared bases; ΔW = scale · U or its transpose."""

    def __init__(self, config: RandLoRAConfig, dtype: torch.dtype, layer: LayerContext) -> None:
        super().__init__(layer)
        shape = layer.shape
        r, n, m = config.rank(shape), config.bases(shape), shape.max_rank
        alpha = 20 * r if config.randlora_alpha is None else config.randlora_alpha
        self.scale = alpha / (r if config.scale_mode == "peft" else r * math.sqrt(n))
        self.basis_order = config.basis_order
        self.randlora_lambda = nn.Parameter(torch.zeros(r, n, dtype=dtype))
        self.randlora_gamma = nn.Parameter(torch.full((n, m), 1 / max(n, m), dtype=dtype))
        sizes = config.basis_shape(layer.pool.shapes)
        self.share("bases", lambda: RandomBases(config, *sizes, dtype))

    def _parts(self) -> tuple[tuple[Tensor, Tensor, Tensor], Float[Tensor, "large nr"], bool]:
        """(A, λ, γ) as broadcast to Ā, B̄, and whether in is the small side."""
        lam, gamma, shape = self.randlora_lambda, self.randlora_gamma, self.layer.shape
        (r, n), m = lam.shape, shape.max_rank
        a, b = cast(RandomBases, self.shared["bases"]).like(lam)
        parts = a[:r, :n, :m], lam[:, :, None], gamma[None]
        if self.basis_order == "paper":
            parts = parts[0].transpose(0, 1), parts[1].transpose(0, 1), parts[2].transpose(0, 1)
        large = b.flatten(1)[: max(shape.out_features, shape.in_features), : n * r]
        return parts, large, m == shape.in_features

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """(Ā, B̄), or (B̄ᵀ, Āᵀ) where out is the small side."""
        parts, large, in_is_small = self._parts()
        small = cast(Tensor, ScaledProduct.apply(*parts)).flatten(0, 1)  # type: ignore[no-untyped-call]
        return (small, large) if in_is_small else (large.t(), small.t())

    def forward(self, x: Tensor) -> Tensor:
        """The branch; a linear layer's keeps no Ā for the backward pass."""
        return self.scale * self._linear(x) if self._is_short() else super().forward(x)

    def add_to(self, y: Tensor, x: Tensor, scaling: float) -> Tensor:
        """``y + scaling · forward(x)``."""
        if not self._is_short():
            return super().add_to(y, x, scaling)
        return torch.add(y, self._linear(x), alpha=scaling * self.scale)

    def _is_short(self) -> bool:
        return self.layer.op.kind == "linear" and self.active is None and self.gate is None

    def _linear(self, x: Tensor) -> Tensor:
        parts, large, in_is_small = self._parts()
        large = large.to(x.dtype)
        if in_is_small:
            h: Tensor = ScaledLinear.apply(x, *parts, True)  # type: ignore[no-untyped-call]
            return h @ large.t()
        y: Tensor = ScaledLinear.apply(x @ large, *parts, False)  # type: ignore[no-untyped-call]
        return y

    def multiply_adds(self, tokens: int) -> tuple[int, int]:
        """Both factors forward; the frozen one has no gradient of its own."""
        m, rank = self.layer.shape.max_rank, self.factor_rank
        large = max(self.layer.shape.out_features, self.layer.shape.in_features)
        return tokens * rank * (3 * m + 2 * large), self.fold_cost(tokens) + 2 * rank * m * large

    @property
    def factor_rank(self) -> int:
        """n · r."""
        return self.randlora_lambda.numel()
