"""LOST: pretraining with W = γ B A + (1 − γ) W_s, W_s a few whole columns; the start is a split of a dense one.

    W₀ = U Σ Vᵀ      A = Σ_r^½ V_rᵀ      B = U_r Σ_r^½      I = the n_c columns of W₀ − B A of largest norm
    y = γ B φ(A x) + (1 − γ) W_s x_I + b,      W_s = W₀[:, I]

    A (r, in)   B (out, r)   W_s (out, n_c), n_c = max(1, ⌊ρ · in⌋)   I (n_c)   φ: SiLU or nothing

Source: Li et al., "LOST: Low-rank and Sparse Pre-training for Large Language Models", 2025, arXiv:2508.02668.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.arguments import checked
from eckart.errors import InputError
from eckart.layers._structured import Key, StructuredLinear, cast_for, check_rank, check_share, register_layer
from eckart.linalg.columns import LowRankColumns, LowRankColumnsLinear, low_rank_columns

CHOICES: dict[str, tuple[Any, ...]] = {
    "activation": ("silu", "identity"),
    "columns": ("residual", "random"),
    "norm": (1, 2),
    "init": ("svd", "cola"),
}

OUTSIDE = ("self", "in_features", "out_features", "bias", "device", "dtype", "__class__")
"""Arguments that are no option of the structure."""


@register_layer("lost")
class LOSTLinear(StructuredLinear):
    """A linear layer of rank r plus a share of its columns, dense kernels throughout.

    Make it by `from_linear`, which splits the dense weight; the constructor makes one to load into.

    Args:
        in_features, out_features, bias: as in `nn.Linear`.
        r: rank, below the shorter side.
        sparsity: ρ, the share of columns (input channels) that are kept, in (0, 1); at least one is.
        gamma: γ, weight of the low-rank part; the columns have 1 − γ.
        activation: φ between the factors, ``"silu"`` (the pretraining form) or ``"identity"``, which can be made dense.
        columns: ``"residual"`` or, for comparison, ``"random"`` ones.
        norm: of the residual's columns, ℓ2 or ℓ1.
        sparse_svd_rank: singular triples after the r-th that the residual is made of; None for all.
        svd_inverse: take them from the small end.
        init: factors from the ``"svd"``, or ``"cola"``: normal of variance 1/√(r (in + out)).
        residual_values: W_s = (W₀ − B A)[:, I], and the parts are added with weight 1 [ours]: the start is W₀ on I.
        finetune: the fine-tuning form: y = x W₀ᵀ + (lora_alpha/r) · the above + b, W₀ frozen.
        lora_alpha: of the fine-tuning form.
        zero_start: there, take the start of the branch out of W₀, so that training begins at W₀ [ours].
        seed: 63 bits that random columns and starts follow from.
        device, dtype: of the parameters.

    Raises:
        InputError: an option out of its range.

    Source: Li et al., 2025, arXiv:2508.02668.
    """

    selected_columns: Tensor

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        r: int,
        sparsity: float = 0.05,
        gamma: float = 0.5,
        activation: Literal["silu", "identity"] = "silu",
        columns: Literal["residual", "random"] = "residual",
        norm: Literal[1, 2] = 2,
        sparse_svd_rank: int | None = None,
        svd_inverse: bool = False,
        init: Literal["svd", "cola"] = "svd",
        residual_values: bool = False,
        finetune: bool = False,
        lora_alpha: float = 1.0,
        zero_start: bool = False,
        seed: Key = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in OUTSIDE}
        self.check(in_features, out_features, **options)
        super().__init__(in_features, out_features, bias, finetune, options, device, dtype)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        count = kept_columns(in_features, sparsity)
        self.lora_A = nn.Parameter(torch.zeros(r, in_features, **made))
        self.lora_B = nn.Parameter(torch.zeros(out_features, r, **made))
        self.sparse_values = nn.Parameter(torch.zeros(out_features, count, **made))
        self.register_buffer("selected_columns", torch.arange(count, dtype=torch.int32, device=device))

    @classmethod
    def check(cls, in_features: int, out_features: int, **options: Any) -> None:
        check_rank(options["r"], in_features, out_features, below=True)
        check_share("sparsity", options.get("sparsity", 0.05))
        gamma, alpha = options.get("gamma", 0.5), options.get("lora_alpha", 1.0)
        if not 0 <= gamma <= 1:
            raise InputError(f"gamma={gamma}: give a weight from 0 to 1")
        if not 0 < alpha < math.inf:
            raise InputError(f"lora_alpha={alpha}: give a positive number")
        for name, known in CHOICES.items():
            if options.get(name, known[0]) not in known:
                raise InputError(f"{name}={options[name]!r}: choose one of {', '.join(map(str, known))}")
        triples = options.get("sparse_svd_rank")
        if triples is not None and (not isinstance(triples, int) or triples < 1):
            raise InputError(
                f"sparse_svd_rank={triples!r}: give a whole number from 1 up, or None for all triples"
            )
        if options.get("zero_start") and not options.get("finetune"):
            raise InputError(
                "zero_start=True without finetune=True: only a frozen weight can take the start up"
            )
        if options.get("zero_start") and options.get("activation", "silu") != "identity":
            raise InputError(
                "zero_start=True with activation='silu': the start is no matrix; take activation='identity'"
            )

    @classmethod
    def count(cls, in_features: int, out_features: int, **options: Any) -> int:
        columns = kept_columns(in_features, options.get("sparsity", 0.05))
        return int(options["r"]) * (in_features + out_features) + out_features * columns

    @classmethod
    def from_linear(cls, linear: nn.Linear, key: int, **options: Any) -> LOSTLinear:
        made: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        layer = cls(
            linear.in_features, linear.out_features, linear.bias is not None, seed=key, **options, **made
        )
        if made["device"].type != "meta":
            layer._split(linear)
        return layer

    @torch.no_grad()
    def _split(self, linear: nn.Linear) -> None:
        weight, options, count = linear.weight, self.options, self.selected_columns.numel()
        if not bool(weight.isfinite().all()):
            raise InputError("the layer's weight holds NaN or infinity: start from a finite one")
        generator = torch.Generator().manual_seed(options["seed"])
        found = low_rank_columns(
            weight,
            options["r"],
            count,
            norm=options["norm"],
            triples=options["sparse_svd_rank"],
            smallest=options["svd_inverse"],
        )
        if options["columns"] == "random":
            chosen = torch.randperm(self.in_features, generator=generator)[:count].sort().values
            found = found._replace(columns=chosen.to(weight.device))
        if options["init"] == "cola":
            found = self._cola(found, generator)
        self.lora_A.copy_(found.A)
        self.lora_B.copy_(found.B)
        self.selected_columns.copy_(found.columns)
        source = weight - (found.B @ found.A).to(weight.dtype) if options["residual_values"] else weight
        self.sparse_values.copy_(source[:, found.columns])
        if self.bias is not None:
            self.bias.copy_(linear.bias)
        if self.weight is not None:
            self.weight.copy_(weight)
            if options["zero_start"]:
                self.weight.sub_(self.structured_weight())

    def _cola(self, found: LowRankColumns, generator: torch.Generator) -> LowRankColumns:
        spread = (self.options["r"] * (self.in_features + self.out_features)) ** -0.25
        a, b = (torch.randn(t.shape, generator=generator).to(t) * spread for t in (found.A, found.B))
        return found._replace(A=a, B=b)

    def weights(self) -> tuple[float, float]:
        """What the low-rank part and the columns are multiplied by."""
        gamma, scale = self.options["gamma"], 1.0
        if self.options["finetune"]:
            scale = self.options["lora_alpha"] / self.options["r"]
        if self.options["residual_values"]:
            return scale, scale
        return scale * gamma, scale * (1 - gamma)

    def branch(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        x, a, b, kept = cast_for(x, self.lora_A, self.lora_B, self.sparse_values)
        silu = self.options["activation"] == "silu"
        with torch.autocast(x.device.type, enabled=False):
            y: Tensor = LowRankColumnsLinear.apply(  # type: ignore[no-untyped-call]
                x.reshape(-1, self.in_features), a, b, kept, self.selected_columns, self.weights(), silu
            )
        return y.view(*x.shape[:-1], self.out_features)

    def structured_weight(self) -> Float[Tensor, "out in"]:
        if self.options["activation"] != "identity":
            raise InputError(
                "activation='silu': a layer with a non-linearity between its factors has no dense weight; train with "
                "activation='identity' where one is needed"
            )
        wide = torch.promote_types(self.lora_A.dtype, torch.float32)
        low, high = self.weights()
        weight = low * (self.lora_B.to(wide) @ self.lora_A.to(wide))
        return weight.index_add_(1, self.selected_columns.long(), self.sparse_values.to(wide), alpha=high)


def kept_columns(in_features: int, sparsity: float) -> int:
    """n_c = max(1, ⌊ρ · in⌋)."""
    return max(1, int(sparsity * in_features))
