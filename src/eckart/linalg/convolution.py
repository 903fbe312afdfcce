"""Long convolutions by the fast Fourier transform, a part of the batch at a time: no spectrum of the whole is kept."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def causal_convolution(
    u: Float[Tensor, "*batch h length"], k: Float[Tensor, "h length"]
) -> Float[Tensor, "*batch h length"]:
    """y_t = Σ_{s≤t} k_{t−s} u_s, in O(L log L).

    Args:
        u: signals, in float32 or float64.
        k: one kernel for each of the h channels, from lag 0, in the same precision.
    """
    return _convolve(u, k, fft_length(fixed(u.shape[-1]) + fixed(k.shape[-1]) - 1))


def two_sided_convolution(
    u: Float[Tensor, "*batch h length"], past: Float[Tensor, "h length"], future: Float[Tensor, "h length"]
) -> Float[Tensor, "*batch h length"]:
    """y_t = Σ_{s≤t} past_{t−s} u_s + Σ_{s>t} future_{s−t−1} u_s, in O(L log L).

    Args:
        u: signals, in float32 or float64.
        past: one kernel for each of the h channels, from lag 0, in the same precision.
        future: one against the direction of time, from lag 1; its last entry meets no sample.
    """
    length = fixed(u.shape[-1])
    n = fft_length(2 * length - 1)
    gap = past.new_zeros(*past.shape[:-1], n - 2 * length + 1)
    return _convolve(u, torch.cat([past, gap, future[..., : length - 1].flip(-1)], dim=-1), n)


def fixed(size: int) -> int:
    """A size of a tensor as a plain number where `torch.jit.trace` gives another tensor: the trace is of this size."""
    if not tracing():
        return size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TracerWarning: what is said above
        return int(size)


def tracing() -> bool:
    """Whether `torch.jit.trace` is at work."""
    return not torch.compiler.is_compiling() and bool(torch._C._is_tracing())


def fft_length(least: int) -> int:
    """The smallest even 2^a 3^b 5^c that is at least ``least``: lengths that real transforms are fast at."""
    odd: list[int] = [3**b * 5**c for b in range(20) for c in range(14)]
    return min(2 * m << (-(-least // (2 * m)) - 1).bit_length() for m in odd)


def _convolve(u: Tensor, k: Tensor, n: int) -> Tensor:
    y: Tensor = circular_convolution(u.reshape(-1, *u.shape[-2:]), k, n)
    return y.reshape(u.shape)


@torch.library.custom_op(
    "eckart::circular_convolution", mutates_args=(), schema="(Tensor u, Tensor k, SymInt n) -> Tensor"
)
def circular_convolution(u: Tensor, k: Tensor, n: int) -> Tensor:
    """The first L samples of the convolution of period n, y_t = Σ_s k_{(t−s) mod n} u_s.

    Args:
        u: signals ``(batch, h, L)``, L ≤ n.
        k: kernels ``(h, K)``, K ≤ n.
        n: the period.

    Returns:
        ``(batch, h, L)``, laid out in memory as u is.
    """
    spectrum = torch.fft.rfft(k, n)
    y = torch.empty_like(u)
    for u_part, y_part in zip(_parts(u, n), _parts(y, n), strict=True):
        y_part.copy_(torch.fft.irfft(torch.fft.rfft(u_part, n).mul_(spectrum), n)[..., : u.shape[-1]])
    return y


@torch.library.custom_op(
    "eckart::circular_correlation",
    mutates_args=(),
    schema="(Tensor g, Tensor u, Tensor k, SymInt n) -> (Tensor, Tensor)",
)
def circular_correlation(g: Tensor, u: Tensor, k: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The gradients of ⟨g, circular_convolution(u, k, n)⟩: Σ_t k_{(t−s) mod n} g_t, and Σ g_t u_{(t−s) mod n}."""
    spectrum = torch.fft.rfft(k, n).conj().resolve_conj()
    for_u, for_k = torch.empty_like(u), torch.zeros_like(spectrum)
    for g_part, u_part, out in zip(*(_parts(x, n) for x in (g, u, for_u)), strict=True):
        g_hat, u_hat = torch.fft.rfft(g_part, n), torch.fft.rfft(u_part, n)
        for_k += u_hat.conj_physical_().mul_(g_hat).sum(0)
        out.copy_(torch.fft.irfft(g_hat.mul_(spectrum), n)[..., : u.shape[-1]])
    return for_u, torch.fft.irfft(for_k, n)[..., : k.shape[-1]].contiguous()


def _parts(x: Tensor, n: int) -> tuple[Tensor, ...]:
    """Views of a few signals each, whose padded copies stay in a CPU's cache or take a small part of a GPU's memory."""
    numbers = 2 ** (18 if x.device.type == "cpu" else 27)
    return torch.split(x, max(1, numbers // (n * x.shape[1]))) if len(x) else ()


@circular_convolution.register_fake
def _(u: Tensor, k: Tensor, n: int) -> Tensor:
    return torch.empty_like(u)


@circular_correlation.register_fake
def _(g: Tensor, u: Tensor, k: Tensor, n: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(u), k.new_empty(k.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.n = inputs
    ctx.save_for_backward(*tensors)


def _convolution_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    u, k = ctx.saved_tensors
    return *circular_correlation(g, u, k, ctx.n), None


def _correlation_backward(ctx: Any, to_u: Tensor, to_k: Tensor) -> tuple[Tensor | None, ...]:
    """The pair is linear in each of g, u and k, so that its own gradients are the same two operations."""
    g, u, k = ctx.saved_tensors
    for_g = circular_convolution(to_u, k, ctx.n) + circular_convolution(u, to_k, ctx.n)
    return for_g, *circular_correlation(g, to_u, to_k, ctx.n), None


circular_convolution.register_autograd(_convolution_backward, setup_context=_remember)
circular_correlation.register_autograd(_correlation_backward, setup_context=_remember)
