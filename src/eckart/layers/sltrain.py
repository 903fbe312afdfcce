"""SLTrain: pretraining with W = s B A + S, S on a random support that never changes.

    y = x (s B A + S)ᵀ + b        S[i, j] = v_k where i · in + j is the k-th position of the support, else 0

    A (r, in)   B (out, r)   v (nnz), nnz = ⌊δ · in · out⌋   s = lora_alpha/r, or tanh of a trained number

Source: Han et al., "SLTrain: a sparse plus low-rank approach for parameter and memory efficient pretraining", NeurIPS
2024, arXiv:2406.02214.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from eckart.arguments import checked
from eckart.errors import InputError
from eckart.layers._structured import Key, StructuredLinear, cast_for, check_rank, check_share, register_layer
from eckart.linalg.sparse import (
    LowRankSparseLinear,
    balanced_support,
    low_rank_plus_sparse,
    random_support,
)

SPARSE_COST = {"cpu": 5.0}
"""How many multiply–adds of a dense product one of a sparse product takes; measured on a CPU at 3 % of the entries."""
OTHER_SPARSE_COST = 50.0
"""The same on an accelerator [an assumption, not measured]."""


@register_layer("sltrain")
class SLTrainLinear(StructuredLinear):
    """A linear layer of rank r plus a share δ of the entries, all trained; it starts as S alone.

    A starts uniform on ±1/√in, B at zero, v uniform on ±1/√in. Kept for the backward pass: the input, A, B and v.

    Args:
        in_features, out_features, bias: as in `nn.Linear`.
        r: rank of B A, at most the shorter side.
        sparsity: δ, the share of entries that train, in (0, 1).
        lora_alpha: s = lora_alpha/r.
        train_scaling: instead, s = tanh of a trained number that starts at 1.
        support: ``"random"`` (uniform over all entries) or ``"row_balanced"`` (equally many in each row [ours]).
        route: form W for each pass (``"dense"``, the authors'), or send x through the factors (``"factored"``);
            ``"auto"`` takes the cheaper for the number of tokens. Both give the same numbers.
        finetune: the fine-tuning form: a frozen W₀ is added, and v starts at zero.
        seed: 63 bits that the support and the starts follow from; saved in place of the support.
        mask: the support itself, (out, in), True where an entry trains; it is then saved as it is, and its share is δ.
        device, dtype: of the parameters.

    Raises:
        InputError: an option out of its range.

    Source: Han et al., 2024, arXiv:2406.02214.
    """

    sparse_index: Tensor
    support_seed: Tensor

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        r: int,
        sparsity: float = 0.03,
        lora_alpha: float = 32.0,
        train_scaling: bool = False,
        support: Literal["random", "row_balanced", "explicit"] = "random",
        route: Literal["auto", "dense", "factored"] = "auto",
        finetune: bool = False,
        seed: Key = 0,
        mask: Bool[Tensor, "out in"] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if mask is not None:
            sparsity, support = int(mask.sum()) / mask.numel(), "explicit"
            if mask.shape != (out_features, in_features):
                raise InputError(
                    f"mask has shape {tuple(mask.shape)}: the layer's is ({out_features}, {in_features})"
                )
        options = {
            "r": r,
            "sparsity": sparsity,
            "lora_alpha": lora_alpha,
            "train_scaling": train_scaling,
            "support": support,
            "route": route,
        }
        self.check(in_features, out_features, **options)
        options |= {"finetune": finetune, "seed": seed}
        super().__init__(in_features, out_features, bias, finetune, options, device, dtype)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.count_nonzero = entries(in_features, out_features, sparsity)
        self.lora_A = nn.Parameter(torch.empty(r, in_features, **made))
        self.lora_B = nn.Parameter(torch.zeros(out_features, r, **made))
        self.sparse_value = nn.Parameter(torch.zeros(self.count_nonzero, **made))
        self.scaling = nn.Parameter(torch.ones(1, **made)) if train_scaling else None
        self.register_buffer("support_seed", torch.tensor(seed, device=device))
        index = torch.arange(self.count_nonzero, dtype=torch.int32, device=device)
        self.register_buffer("sparse_index", index, persistent=support == "explicit")
        if mask is not None:
            index.copy_(mask.flatten().nonzero().squeeze(1))
        self.restore()
        self.reset_parameters()

    @classmethod
    def check(cls, in_features: int, out_features: int, **options: Any) -> None:
        check_rank(options["r"], in_features, out_features)
        check_share("sparsity", options.get("sparsity", 0.03))
        share, size = options.get("sparsity", 0.03), in_features * out_features
        if size >= 2**31:
            raise InputError(f"the layer has {size} entries: a support counts to {2**31 - 1}")
        if entries(in_features, out_features, share) < 1:
            raise InputError(
                f"sparsity={share}: a layer of shape ({out_features}, {in_features}) keeps no entry; give at least "
                f"{1 / size:.3g}"
            )
        if not 0 < options.get("lora_alpha", 32.0) < math.inf:
            raise InputError(f"lora_alpha={options['lora_alpha']}: give a positive number")
        for name, known in (
            ("support", ("random", "row_balanced", "explicit")),
            ("route", ("auto", "dense", "factored")),
        ):
            if options.get(name, known[0]) not in known:
                raise InputError(f"{name}={options[name]!r}: choose one of {', '.join(known)}")

    @classmethod
    def count(cls, in_features: int, out_features: int, **options: Any) -> int:
        r, share = int(options["r"]), options.get("sparsity", 0.03)
        scaling = int(options.get("train_scaling", False))
        return r * (in_features + out_features) + entries(in_features, out_features, share) + scaling

    @classmethod
    def from_linear(cls, linear: nn.Linear, key: int, **options: Any) -> SLTrainLinear:
        made: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        layer = cls(
            linear.in_features, linear.out_features, linear.bias is not None, seed=key, **options, **made
        )
        with torch.no_grad():
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
            if layer.weight is not None:
                layer.weight.copy_(linear.weight)
        return layer

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw A and v from the seed; B, and v in the fine-tuning form, are zero."""
        generator = torch.Generator().manual_seed(self.options["seed"])
        bound = 1 / math.sqrt(self.in_features)
        drawn = [self.lora_A] if self.options["finetune"] else [self.lora_A, self.sparse_value]
        for parameter in drawn:
            if parameter.device.type != "meta":
                numbers = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                parameter.copy_(numbers)

    def restore(self) -> None:
        """Make the support again from the seed."""
        device = self.lora_A.device
        if self.options["support"] == "explicit" or device.type == "meta":
            return
        draw = random_support if self.options["support"] == "random" else balanced_support
        self.options["seed"] = seed = int(self.support_seed)
        self.sparse_index = draw(seed, self.out_features, self.in_features, self.count_nonzero).to(device)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        if self.sparse_index.device.type == "meta" or int(self.support_seed) != self.options["seed"]:
            self.restore()

    def scaled_factor(self) -> tuple[Float[Tensor, "r in"], float]:
        """A and s; where s is trained, s A and 1."""
        if self.scaling is not None:
            return self.scaling.tanh() * self.lora_A, 1.0
        return self.lora_A, float(self.options["lora_alpha"] / self.options["r"])

    def branch(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        factor, scale = self.scaled_factor()
        x, a, b, values = cast_for(x, factor, self.lora_B, self.sparse_value)
        flat = x.reshape(-1, self.in_features)
        dense = self._dense(len(flat), x.device.type)
        with torch.autocast(x.device.type, enabled=False):
            y: Tensor = LowRankSparseLinear.apply(  # type: ignore[no-untyped-call]
                flat, a, b, values, self.sparse_index, scale, dense
            )
        return y.view(*x.shape[:-1], self.out_features)

    def _dense(self, tokens: int, device: str) -> bool:
        """Whether forming W takes fewer multiply–adds than the factors do, in a forward pass."""
        if self.options["route"] != "auto":
            return bool(self.options["route"] == "dense")
        size, r = self.in_features * self.out_features, int(self.options["r"])
        cost = SPARSE_COST.get(device, OTHER_SPARSE_COST)
        factored = tokens * (r * (self.in_features + self.out_features) + cost * self.count_nonzero)
        return (tokens + r) * size < factored

    def structured_weight(self) -> Float[Tensor, "out in"]:
        wide = torch.promote_types(self.lora_A.dtype, torch.float32)
        factor, scale = self.scaled_factor()
        parts = (factor.to(wide), self.lora_B.to(wide), self.sparse_value.to(wide))
        return low_rank_plus_sparse(*parts, self.sparse_index, scale)


def entries(in_features: int, out_features: int, sparsity: float) -> int:
    """nnz = ⌊δ · in · out⌋."""
    return int(sparsity * in_features * out_features)
