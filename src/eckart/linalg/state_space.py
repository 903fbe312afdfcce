"""Diagonal linear systems x' = a x + b u: where their eigenvalues start, and their steps in discrete time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Inexact
from torch import Tensor

from eckart.errors import InputError

Discretization = Literal["zoh", "bilinear"]
Init = Literal["legs", "lin", "inv", "real", "inv2", "quad", "rand", "diag"]
RealTransform = Literal["exp", "relu", "softplus", "sigmoid", "none"]
DtTransform = Literal["exp", "softplus"]
LEAST = 1e-4
"""The smallest decay and frequency that a layer starts from, and what "relu" adds to a decay."""
B_LIMIT = 2.0
"""Largest modulus of an entry of B at the start of LegS."""


class Transform(NamedTuple):
    """A function of a raw parameter, and its inverse."""

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


TRANSFORMS: dict[RealTransform | DtTransform, Transform] = {
    "exp": Transform(torch.exp, torch.log),
    "relu": Transform(lambda raw: raw.relu() + LEAST, lambda value: value - LEAST),
    "softplus": Transform(F.softplus, lambda value: value + torch.log(-torch.expm1(-value))),
    "sigmoid": Transform(torch.sigmoid, torch.logit),
    "none": Transform(lambda raw: raw, lambda value: value),
}


class Spectrum(NamedTuple):
    """Eigenvalues −decay − i·frequency of S systems, and their input weights B."""

    decay: Float[Tensor, "s n"]
    frequency: Float[Tensor, "s n"]
    B: Complex[Tensor, "s n"]


def legs_spectrum(n: int) -> tuple[Float[Tensor, " n"], Complex[Tensor, " n"]]:
    """Frequencies and input weights of the normal part of HiPPO-LegS, in float64.

    S = A + P Pᵀ = −½I + V diag(iω) V*, with A_jk = −√((2j+1)(2k+1)) below the diagonal, −(j+1) on it, 0 above, and
    P_j = √(j+½); the weights are V* √(2j+1), twice those with which the kernel tends to that of S4, as in the authors'
    code. An eigenvector is known up to its phase only; here its first component is a positive number.

    Args:
        n: dimension.

    Returns:
        ω in rising order, and the weights in the same order.

    Source: Gu, Gupta, Goel & Ré, 2022, arXiv:2206.11893.
    """
    root = (2 * torch.arange(n, dtype=torch.float64, device="cpu") + 1).sqrt()
    outer = root.outer(root) / 2
    omega, vectors = torch.linalg.eigh(-1j * (outer.triu(1) - outer.tril(-1)))
    vectors = vectors * vectors[0].sgn().conj()
    return omega, vectors.mH @ root.to(vectors.dtype)


def initial_spectrum(
    init: Init,
    d_state: int,
    n_ssm: int = 1,
    *,
    is_real: bool = False,
    real_random: bool = False,
    real_scale: float = 1.0,
    imag_scale: float = 1.0,
) -> Spectrum:
    """Where the eigenvalues of a diagonal system start: −decay − i·frequency, n = 0, 1, …, with N = ``d_state``.

    The decay is ½ and B = 1 where nothing else is said.

    - "legs": frequency −ω_n for the negative ω of `legs_spectrum`, B its weights, cut to a modulus of at most 2
    - "lin": πn
    - "inv": (N/π)(N/(2n+1) − 1)
    - "inv2": (N/π)(N/(n+1) − 1)
    - "quad": (2n+1)²/π
    - "rand": exp(N(0, 1))
    - "real": 0, decay n + 1
    - "diag": "inv" in the first half of the systems, "lin" in the others

    The authors' code cuts the imaginary part of LegS's B, which depends on the phase that LAPACK happens to choose.

    Args:
        init: one of these.
        d_state: N, the number of real state variables.
        n_ssm: S, the number of systems.
        is_real: N real eigenvalues, instead of one of each of N/2 conjugate pairs.
        real_random: the decay is uniform on [0, 1], times N/2 for "real".
        real_scale: factor on the decay.
        imag_scale: factor on the frequency.

    Source: Gu, Gupta, Goel & Ré, 2022, arXiv:2206.11893; inv2, quad, rand, diag and the last three arguments are
    options of its authors' code.
    """
    options: dict[str, Any] = {
        "is_real": is_real,
        "real_random": real_random,
        "real_scale": real_scale,
        "imag_scale": imag_scale,
    }
    if init == "diag":
        first = initial_spectrum("inv", d_state, n_ssm - n_ssm // 2, **options)
        second = initial_spectrum("lin", d_state, n_ssm // 2, **options)
        return Spectrum(*(torch.cat(pair) for pair in zip(first, second, strict=True)))
    shape = n_ssm, d_state if is_real else d_state // 2
    n = torch.arange(shape[1], dtype=torch.float64, device="cpu").expand(shape)
    decay, weights = torch.full_like(n, 0.5), torch.ones_like(n, dtype=torch.complex128)
    if real_random:
        decay = torch.rand_like(n) * (d_state / 2 if init == "real" else 1)
    elif init == "real":
        decay = n + 1
    if init == "legs" and not is_real:
        omega, b = legs_spectrum(d_state)
        b = b * (B_LIMIT / b.abs()).clamp_max(1)
        frequency, weights = (-omega[: shape[1]]).expand(shape), b[: shape[1]].expand(shape)
    elif init == "lin":
        frequency = math.pi * n
    elif init in ("inv", "inv2"):
        frequency = d_state / math.pi * (d_state / (2 * n + 1 if init == "inv" else n + 1) - 1)
    elif init == "quad":
        frequency = (2 * n + 1).square() / math.pi
    elif init == "rand":
        frequency = torch.randn_like(n).exp()
    elif init in ("real", "legs"):
        frequency = torch.zeros_like(n)
    else:
        raise InputError(f"init={init!r}: choose one of {', '.join(get_args(Init))}")
    return Spectrum(real_scale * decay, imag_scale * frequency, weights)


def discretize(
    A: Inexact[Tensor, "h n"], dt: Float[Tensor, "h k"], how: Discretization
) -> tuple[Inexact[Tensor, "h n"], Inexact[Tensor, "h n"]]:
    """log ā and b̄/b of one time step, elementwise with z = Δ a.

    zoh: ā = e^z, b̄ = (e^z − 1)/a · b. bilinear: ā = (1 + z/2)/(1 − z/2), b̄ = Δ/(1 − z/2) · b.

    Args:
        A: eigenvalues a; where they are real and ``how`` is bilinear, ā may be negative and its logarithm is complex.
        dt: step sizes Δ.
        how: "zoh" or "bilinear".
    """
    z = dt * A
    if how == "zoh":
        away = torch.where(z == 0, 1, z)
        return z, dt * torch.where(z == 0, 1 + z / 2, torch.expm1(away) / away)
    below = 1 / (1 - z / 2)
    factor = (1 + z / 2) * below
    tiny = torch.finfo(factor.dtype).tiny
    factor = torch.where(factor == 0, tiny, factor)
    return (factor + 0j).log(), dt * below


def recurrent_step(
    u: Float[Tensor, "batch h"],
    state: Inexact[Tensor, "batch h n"],
    dA: Inexact[Tensor, "h n"],
    dB: Inexact[Tensor, "h n"],
    C: Inexact[Tensor, "h n"],
    D: Float[Tensor, " h"],
) -> tuple[Float[Tensor, "batch h"], Inexact[Tensor, "batch h n"]]:
    """x ← ā x + b̄ u, then y = 2 Re Σ_n c_n x_n + D u."""
    state = dA * state + dB * u.unsqueeze(-1)
    y = 2 * (C * state).sum(-1)
    return (y.real if y.is_complex() else y) + D * u, state
