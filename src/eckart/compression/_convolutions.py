"""Convolutions of fewer numbers.

FactorizedConv2d      two convolutions with r channels between them: "NC" H×W then 1×1, "VH" H×1 then 1×W
DecoupledConv2d       a sum of r paths, 1×1 then depthwise H×W
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.compression._layers import CompressedLayer, Spec


class _Convolution(CompressedLayer):
    """What a convolution needs to be told beside its rank."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rank: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int] | str,
        dilation: tuple[int, int],
        bias: bool,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.rank = in_channels, out_channels, rank
        self.kernel_size, self.stride = tuple(kernel_size), tuple(stride)
        self.padding = padding if isinstance(padding, str) else tuple(padding)
        self.dilation, self.has_bias = tuple(dilation), bias

    @property
    def spec(self) -> Spec:
        pairs = ("kernel_size", "stride", "padding", "dilation")
        found = {name: getattr(self, name) for name in ("kind", "in_channels", "out_channels", "rank")}
        for name in pairs:
            value = getattr(self, name)
            found[name] = value if isinstance(value, str) else list(value)
        return {**found, "bias": self.has_bias}

    def _dense(self, weight: Float[Tensor, "N C H W"], bias: Tensor | None) -> nn.Conv2d:
        layer = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
            bias=bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            layer.weight.copy_(weight)
            if bias is not None and layer.bias is not None:
                layer.bias.copy_(bias)
        return layer

    def extra_repr(self) -> str:
        return f"rank={self.rank}"


class FactorizedConv2d(_Convolution):
    """Two convolutions: "NC" (r, C, H, W) then (N, r, 1, 1), "VH" (r, C, H, 1) then (N, r, 1, W)."""

    kind = "conv"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rank: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int] | str,
        dilation: tuple[int, int],
        bias: bool,
        scheme: str,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, rank, kernel_size, stride, padding, dilation, bias)
        self.scheme = scheme
        one: dict[str, Any] = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
        two: dict[str, Any] = {"kernel_size": (1, 1)}
        one["padding"] = padding
        if scheme == "VH":
            (h, w), (sh, sw), (dh, dw) = kernel_size, stride, dilation
            ph, pw = (padding, padding) if isinstance(padding, str) else ((padding[0], 0), (0, padding[1]))
            one = {"kernel_size": (h, 1), "stride": (sh, 1), "dilation": (dh, 1), "padding": ph}
            two = {"kernel_size": (1, w), "stride": (1, sw), "dilation": (1, dw), "padding": pw}
        self.A = nn.Conv2d(in_channels, rank, bias=False, device=device, dtype=dtype, **one)
        self.B = nn.Conv2d(rank, out_channels, bias=bias, device=device, dtype=dtype, **two)

    @property
    def spec(self) -> Spec:
        return {**super().spec, "scheme": self.scheme}

    def forward(self, x: Tensor) -> Tensor:
        return self.B(self.A(x))  # type: ignore[no-any-return]

    def dense(self) -> nn.Conv2d:
        with torch.no_grad():
            first, second = (factor.weight for factor in (self.A, self.B))
            form = "nruw,rchv->nchw" if self.scheme == "VH" else "nruv,rchw->nchw"
            weight = torch.einsum(form, second, first)
        return self._dense(weight, self.B.bias)


class DecoupledConv2d(_Convolution):
    """Σ_i depthwise_i(pointwise_i(x)): r pointwise convolutions at once, a grouped one, and their sum."""

    kind = "decoupled"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rank: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int] | str,
        dilation: tuple[int, int],
        bias: bool,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, rank, kernel_size, stride, padding, dilation, bias)
        self.path = nn.ModuleList()
        for i in range(rank):
            pw = nn.Conv2d(in_channels, out_channels, 1, bias=False, device=device, dtype=dtype)
            dw = nn.Conv2d(
                out_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                dilation,
                out_channels,
                bias and i == 0,
                device=device,
                dtype=dtype,
            )
            self.path.append(nn.ModuleDict({"pw": pw, "dw": dw}))

    def _paths(self) -> list[tuple[nn.Conv2d, nn.Conv2d]]:
        return [(path["pw"], path["dw"]) for path in self.path]  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self._paths()
        y: Tensor = first[1](first[0](x))
        for pw, dw in others:
            y = y + dw(pw(x))
        return y

    def dense(self) -> nn.Conv2d:
        with torch.no_grad():
            weight = torch.stack([pw.weight * dw.weight for pw, dw in self._paths()]).sum(0)
        return self._dense(weight, self._paths()[0][1].bias)
