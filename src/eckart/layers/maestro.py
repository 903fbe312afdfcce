"""Maestro: layers that are two factors of full rank, whose ranks training orders by importance, and which are then cut.

    y = U (Vᵀ x) + b,      of rank b:  y = U_{:,:b} (V_{:,:b})ᵀ x + b
    start                  Vᵀ = √S Vhᵀ, U = U √S of the dense weight's SVD

    linear        in_network (R, in)       out_network (out, R)        R = min(in, out)
    convolution   conv_u (R, c, h, w)      conv_v (n, R, 1, 1)         R = min(n, c·h·w)

`OrderedDropout` trains them; `cut` makes a smaller model of any size.

Source: Horváth et al., ICML 2024, arXiv:2308.14929.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eckart.errors import InputError
from eckart.layers._maestro import MaestroLayer
from eckart.layers._structured import StructuredLayer, register_layer


@register_layer("maestro")
class MaestroLinear(MaestroLayer):
    """y = U (Vᵀ x) + b, made by `from_linear`; the constructor makes one to load into.

    Args:
        in_features, out_features, bias: as in `nn.Linear`.
        r: R, at most the shorter side, which it is when None.
        device, dtype: of the parameters.

    Raises:
        InputError: a rank above the shorter side.

    Source: Horváth et al., 2024, arXiv:2308.14929.
    """

    names = ("in_network", "out_network")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        r: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.check(in_features, out_features, r=r)
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        r = min(in_features, out_features) if r is None else r
        self.in_network = nn.Linear(in_features, r, bias=False, device=device, dtype=dtype)
        self.out_network = nn.Linear(r, out_features, bias=bias, device=device, dtype=dtype)
        self._ranks(r, device)

    @classmethod
    def kinds(cls) -> dict[type[nn.Module], type[StructuredLayer]]:
        return {nn.Linear: MaestroLinear, nn.Conv2d: MaestroConv2d}

    @classmethod
    def from_linear(cls, linear: nn.Linear, key: int = 0, **options: Any) -> MaestroLinear:
        """The layer of a dense one, random or trained: the same outputs, up to rounding, at full rank."""
        weight, bias = linear.weight, linear.bias
        made: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        layer = cls(linear.in_features, linear.out_features, bias is not None, **options, **made)
        if weight.device.type != "meta":
            layer._start(weight, bias)
        return layer

    @classmethod
    def from_module(cls, module: Any, key: int, **options: Any) -> MaestroLinear:
        return cls.from_linear(module, key, **options)

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        h: Tensor = self.in_network(x)
        if self.training and self.gate is not None:
            h = h * self.gate.to(h.dtype)
        y: Tensor = self.out_network(h)
        return y

    def to_module(self) -> nn.Linear:
        bias, like = self.bias, self.in_network.weight
        made: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        linear = nn.Linear(self.in_features, self.out_features, bias is not None, **made)
        with torch.no_grad():
            linear.weight.copy_(self.dense_weight())
            if bias is not None:
                linear.bias.copy_(bias)
        return linear

    def _empty(self, rank: int) -> MaestroLinear:
        like = self.in_network.weight
        sizes = self.in_features, self.out_features, self.bias is not None
        return MaestroLinear(*sizes, r=rank, device=like.device, dtype=like.dtype)

    def spec(self) -> dict[str, Any]:
        sizes = {"in_features": self.in_features, "out_features": self.out_features}
        return {"method": self.slug, **sizes, "bias": self.bias is not None, "r": len(self.low_rank)}


@register_layer("maestro-conv", part=True)
class MaestroConv2d(MaestroLayer):
    """A convolution with R channels of the same window, then one of 1×1; made by `from_module`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias: as in `nn.Conv2d`, one group.
        r: R, at most min(out, in · height · width), which it is when None.
        device, dtype: of the parameters.

    Raises:
        InputError: a rank above that.

    Source: Horváth et al., 2024, arXiv:2308.14929.
    """

    names = ("conv_u", "conv_v")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        bias: bool = True,
        *,
        r: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        height, width = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
        inputs = in_channels * height * width
        self.check(inputs, out_channels, r=r)
        super().__init__()
        r = min(inputs, out_channels) if r is None else r
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        window = (height, width), _pair(stride), _pair(padding), _pair(dilation)
        self.conv_u = nn.Conv2d(in_channels, r, *window, bias=False, **made)
        self.conv_v = nn.Conv2d(r, out_channels, 1, bias=bias, **made)
        self._ranks(r, device)

    @classmethod
    def kinds(cls) -> dict[type[nn.Module], type[StructuredLayer]]:
        return MaestroLinear.kinds()

    @classmethod
    def from_module(cls, module: Any, key: int = 0, **options: Any) -> MaestroConv2d:
        if module.groups != 1 or module.padding_mode != "zeros":
            raise InputError(
                f"a convolution of {module.groups} groups and padding {module.padding_mode!r} has no such factors: "
                "leave it out of target_modules"
            )
        weight, bias = module.weight, module.bias
        made: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        layer = cls(**_window(module), bias=bias is not None, **options, **made)
        if weight.device.type != "meta":
            layer._start(weight, bias)
        return layer

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n o i j"]:
        h: Tensor = self.conv_u(x)
        if self.training and self.gate is not None:
            h = h * self.gate.to(h.dtype).view(-1, 1, 1)
        y: Tensor = self.conv_v(h)
        return y

    def to_module(self) -> nn.Conv2d:
        bias, like = self.bias, self.conv_u.weight
        made: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        conv = nn.Conv2d(**self._sizes(), bias=bias is not None, **made)
        with torch.no_grad():
            conv.weight.copy_(self.dense_weight().view_as(conv.weight))
            if bias is not None and conv.bias is not None:
                conv.bias.copy_(bias)
        return conv

    def _sizes(self) -> dict[str, Any]:
        return {**_window(self.conv_u), "out_channels": self.conv_v.out_channels}

    def _empty(self, rank: int) -> MaestroConv2d:
        like = self.conv_u.weight
        made: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        return MaestroConv2d(**self._sizes(), bias=self.bias is not None, r=rank, **made)

    def spec(self) -> dict[str, Any]:
        sizes = {
            name: list(value) if isinstance(value, tuple) else value for name, value in self._sizes().items()
        }
        return {"method": self.slug, **sizes, "bias": self.bias is not None, "r": len(self.low_rank)}


def _window(conv: nn.Conv2d) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    return {name: getattr(conv, name) for name in names}


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
