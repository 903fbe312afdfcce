"""The diagonal systems of an S4D layer: their parameters, their convolution kernel and their states."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import torch
from jaxtyping import Float, Inexact
from torch import Tensor, nn

from eckart.arguments import checked
from eckart.errors import InputError
from eckart.layers._memory import Memory
from eckart.linalg.state_space import (
    LEAST,
    TRANSFORMS,
    Discretization,
    DtTransform,
    Init,
    RealTransform,
    discretize,
    initial_spectrum,
)
from eckart.linalg.vandermonde import power_moments, power_sums


class S4DKernel(nn.Module):
    """H diagonal systems, each with N real state variables, and the convolution kernel that each of them is.

    K_l = 2 Re Σ_n c_n b̄_n ā_n^l, real states too, where ā and b̄ are the discretised a = −f(A_real) − i·A_imag and b, at
    the step Δ = g(inv_dt). With ``f="exp"`` |ā| < 1 whatever is learnt; "relu" cannot leave a decay of 1e-4 once it
    is there; with "none" the decay may turn negative, and the system unstable.

    Args:
        d_model: H.
        d_state: N; even, as it counts both of each conjugate pair, unless the states are real.
        init: where the eigenvalues start (`eckart.linalg.state_space.initial_spectrum`), at 1e-4 or above.
        discretization: "zoh" or "bilinear".
        real_transform: f, of the decay.
        dt_transform: g, of the step size.
        dt_min: Δ starts log-uniformly between this and dt_max; a system remembers about 1/Δ samples.
        dt_max: see dt_min.
        dt_tie: one step size for a channel instead of one for each of its states.
        n_ssm: S, the number of different (A, B): channel h has those of h mod S. H where it is None.
        channels: kernels for each channel of the sequence, which differ in c only.
        is_real: real states, N numbers instead of N/2 complex ones. Where it is None: only for ``init="real"``.
        bandlimit: leave out states whose frequency Δ|Im a|/2π, in cycles per sample at rate 1, is at least half of
            this: with 1 those that the signal cannot have, with less also those that would alias at a higher rate.
        real_random: as in `initial_spectrum`.
        real_scale: as in `initial_spectrum`.
        imag_scale: as in `initial_spectrum`.

    Raises:
        InputError: an unknown name, a number out of its range, an odd d_state of complex states, an n_ssm that does
            not divide d_model.

    Source: Gu, Gupta, Goel & Ré, 2022, arXiv:2206.11893.
    """

    @checked
    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        init: Init = "legs",
        discretization: Discretization = "zoh",
        real_transform: RealTransform = "exp",
        dt_transform: DtTransform = "exp",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_tie: bool = True,
        n_ssm: int | None = None,
        channels: int = 1,
        is_real: bool | None = None,
        bandlimit: float | None = None,
        real_random: bool = False,
        real_scale: float = 1.0,
        imag_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.channels = d_model, d_state, channels
        self.n_ssm = d_model if n_ssm is None else n_ssm
        self.is_real = init == "real" if is_real is None else is_real
        self.init, self.discretization = init, discretization
        self.real_transform, self.dt_transform = real_transform, dt_transform
        self.dt_min, self.dt_max, self.bandlimit = dt_min, dt_max, bandlimit
        self._start: dict[str, Any] = {
            "real_random": real_random,
            "real_scale": real_scale,
            "imag_scale": imag_scale,
        }
        self._check()
        self.size, parts = (d_state, []) if self.is_real else (d_state // 2, [2])
        self.inv_dt = nn.Parameter(torch.empty(d_model, 1 if dt_tie else self.size))
        self.A_real = nn.Parameter(torch.empty(self.n_ssm, self.size))
        if not self.is_real:
            self.A_imag = nn.Parameter(torch.empty(self.n_ssm, self.size))
        self.B = nn.Parameter(torch.empty(1, self.n_ssm, self.size, *parts))
        self.C = nn.Parameter(torch.empty(channels, d_model, self.size, *parts))
        self._memory = Memory()
        self.reset_parameters()

    def _check(self) -> None:
        laws = {"init": Init, "discretization": Discretization}
        laws |= {"real_transform": RealTransform, "dt_transform": DtTransform}
        for name, law in laws.items():
            if getattr(self, name) not in get_args(law):
                raise InputError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(get_args(law))}")
        if not self.is_real and self.d_state % 2:
            raise InputError(f"d_state={self.d_state} is odd: complex states come in pairs, give an even one")
        if self.d_model % self.n_ssm:
            raise InputError(f"n_ssm={self.n_ssm} does not divide d_model={self.d_model}: give a divisor")
        if not self.dt_min <= self.dt_max:
            raise InputError(f"dt_min={self.dt_min}, dt_max={self.dt_max}: give 0 < dt_min <= dt_max")

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew.

        Raises:
            InputError: a decay to start from that ``real_transform`` does not reach.
        """
        start = initial_spectrum(self.init, self.d_state, self.n_ssm, is_real=self.is_real, **self._start)
        decay = TRANSFORMS[self.real_transform].inverse(start.decay.clamp_min(LEAST))
        if not bool(decay.isfinite().all()):
            raise InputError(
                f"real_transform={self.real_transform!r} stays below 1 and init={self.init!r} starts above: take 'exp'"
            )
        self.A_real.copy_(decay)
        if self.is_real:
            self.B.copy_(start.B.real)
        else:
            self.A_imag.copy_(start.frequency.clamp_min(LEAST))
            self.B.copy_(torch.view_as_real(start.B))
        nn.init.normal_(self.C, std=1.0 if self.is_real else math.sqrt(0.5))
        dt = torch.empty_like(self.inv_dt).uniform_(math.log(self.dt_min), math.log(self.dt_max)).exp()
        self.inv_dt.copy_(TRANSFORMS[self.dt_transform].inverse(dt))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> S4DKernel:
        """Move the parameters, but let none become shorter than float32: eigenvalues and Δ do not bear it."""

        def keep(x: Tensor) -> Tensor:
            moved = fn(x)
            short = (
                moved.is_floating_point()
                and moved.dtype.itemsize < torch.float32.itemsize <= x.dtype.itemsize
            )
            return x.to(moved.device, torch.float32) if short else moved

        super()._apply(keep, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The real type of kernels and states: that of the parameters, or float32 where they are shorter."""
        return torch.promote_types(self.C.dtype, torch.float32)

    @property
    def A(self) -> Inexact[Tensor, "s n"]:
        """The eigenvalues a, in float64."""
        decay = TRANSFORMS[self.real_transform].forward(_wide(self.A_real))
        return -decay if self.is_real else torch.complex(-decay, -_wide(self.A_imag))

    def forward(self, length: int, rate: float = 1.0) -> Float[Tensor, "channels h length"]:
        """The kernel K.

        Args:
            length: L, from lag 0.
            rate: factor on Δ: 2 for a signal sampled half as often as in training.

        Raises:
            InputError: a length below 1, a rate that is not positive.
        """
        if length < 1:
            raise InputError(f"length={length}: give at least 1")

        def make() -> Tensor:
            log_dA, dB, C = self._system(rate)
            return power_sums(self._narrow(2 * C * dB), log_dA, length)

        return self._memory.get(self, "kernel", (length, rate), make)

    def discretized(self, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """ā, b̄ and c of the first kernel, each (H, n): complex, or real where the states are."""

        def make() -> tuple[Tensor, Tensor, Tensor]:
            log_dA, dB, C = self._system(rate)
            return self._state_like(log_dA.exp()), self._narrow(dB), self._narrow(C[0])

        return self._memory.get(self, "discretized", rate, make)

    def response(
        self, state: Inexact[Tensor, "batch h n"], length: int, rate: float = 1.0
    ) -> Float[Tensor, "batch h length"]:
        """What a state adds to the outputs that follow: 2 Re Σ_n c_n ā_n^(l+1) x_n."""
        log_dA, _, C = self._system(rate)
        return power_sums(2 * self._narrow(C[0] * log_dA.exp()) * state, log_dA, length)

    def advance(
        self,
        u: Float[Tensor, "batch h length"],
        state: Inexact[Tensor, "batch h n"] | None = None,
        rate: float = 1.0,
    ) -> Inexact[Tensor, "batch h n"]:
        """The state after a signal: ā^L x + Σ_l ā^(L−1−l) b̄ u_l."""
        log_dA, dB, _ = self._system(rate)
        after = self._state_like(dB * power_moments(u.flip(-1), log_dA))
        return after if state is None else after + self._state_like((u.shape[-1] * log_dA).exp()) * state

    def _system(self, rate: float) -> tuple[Tensor, Tensor, Tensor]:
        """log ā, b̄ (H, n) and c (channels, H, n), in float64."""
        if not 0 < rate < math.inf:
            raise InputError(f"rate={rate}: give a positive factor")
        B, C = (_wide(x) if self.is_real else torch.view_as_complex(_wide(x)) for x in (self.B, self.C))
        A, B = (x.repeat(self.d_model // self.n_ssm, 1) for x in (self.A, B[0]))
        dt = TRANSFORMS[self.dt_transform].forward(_wide(self.inv_dt))
        if self.bandlimit is not None and not self.is_real:
            C = C * (dt * A.imag.abs() / (2 * math.pi) < self.bandlimit / 2)
        log_dA, gain = discretize(A, rate * dt, self.discretization)
        return log_dA, gain * B, C

    def _narrow(self, x: Tensor) -> Tensor:
        return x.to(torch.promote_types(self.dtype, torch.complex32) if x.is_complex() else self.dtype)

    def _state_like(self, x: Tensor) -> Tensor:
        return self._narrow(x.real if self.is_real else x)


def _wide(x: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)
