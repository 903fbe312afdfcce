"""A plain low-rank layer, W = B A: what the structured ones are compared with.

    y = x (B A)ᵀ + b        A (r, in)   B (out, r)

Source: the start is Khodak et al., 2021, arXiv:2105.01029; the comparison is that of arXiv:2406.02214.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from eckart.arguments import checked
from eckart.layers._structured import StructuredLinear, check_rank, register_layer
from eckart.linalg.ordered import balanced_factors


@register_layer("low-rank")
class LowRankLinear(StructuredLinear):
    """A linear layer of rank r, from the leading singular triples of a dense start: A = Σ_r^½ V_rᵀ, B = U_r Σ_r^½.

    Args:
        in_features, out_features, bias: as in `nn.Linear`.
        r: rank, at most the shorter side.
        device, dtype: of the parameters.

    Raises:
        InputError: a rank above the shorter side.
    """

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        r: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.check(in_features, out_features, r=r)
        super().__init__(in_features, out_features, bias, False, {"r": r}, device, dtype)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.lora_A = nn.Parameter(torch.zeros(r, in_features, **made))
        self.lora_B = nn.Parameter(torch.zeros(out_features, r, **made))

    @classmethod
    def check(cls, in_features: int, out_features: int, **options: Any) -> None:
        check_rank(options["r"], in_features, out_features)

    @classmethod
    def count(cls, in_features: int, out_features: int, **options: Any) -> int:
        return int(options["r"]) * (in_features + out_features)

    @classmethod
    def from_linear(cls, linear: nn.Linear, key: int, **options: Any) -> LowRankLinear:
        weight = linear.weight
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            **options,
            device=weight.device,
            dtype=weight.dtype,
        )
        if weight.device.type == "meta":
            return layer
        found = balanced_factors(weight, options["r"])
        with torch.no_grad():
            layer.lora_A.copy_(found.first)
            layer.lora_B.copy_(found.second)
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer

    def branch(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        return F.linear(F.linear(x, self.lora_A), self.lora_B)

    def structured_weight(self) -> Float[Tensor, "out in"]:
        wide = torch.promote_types(self.lora_A.dtype, torch.float32)
        weight: Tensor = self.lora_B.to(wide) @ self.lora_A.to(wide)
        return weight
