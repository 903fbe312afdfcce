"""Where diagonal systems start, and their time steps, against dense matrices and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from eckart.errors import InputError
from eckart.linalg.state_space import TRANSFORMS, discretize, initial_spectrum, legs_spectrum


def dense_legs(n: int) -> Tensor:
    """A_LegS + P Pᵀ, entry by entry."""
    S = torch.zeros(n, n, dtype=torch.float64)
    for j in range(n):
        for k in range(n):
            low_rank = math.sqrt((j + 0.5) * (k + 0.5))
            hippo = -math.sqrt((2 * j + 1) * (2 * k + 1)) if j > k else -(j + 1.0) if j == k else 0.0
            S[j, k] = hippo + low_rank
    return S


@pytest.mark.parametrize("n", [2, 8, 64])
def test_legs_frequencies_are_those_of_the_dense_matrix(n: int) -> None:
    values = torch.linalg.eigvals(dense_legs(n))
    omega, _ = legs_spectrum(n)
    torch.testing.assert_close(values.imag.sort().values, omega, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(values.real, torch.full_like(omega, -0.5), rtol=0, atol=1e-8)


@pytest.mark.parametrize("n", [8, 64])
def test_legs_weights_have_the_phase_of_a_positive_first_component(n: int) -> None:
    """With eigenvectors of another routine, whose phases are others."""
    values, vectors = torch.linalg.eig(dense_legs(n))
    vectors = vectors[:, values.imag.argsort()]
    vectors = vectors * (vectors[0].abs() / vectors[0])
    weights = vectors.mH @ (2 * torch.arange(n) + 1).double().sqrt().to(vectors.dtype)
    torch.testing.assert_close(legs_spectrum(n)[1], weights, rtol=1e-8, atol=1e-8)


def test_legs_weights_are_cut_in_modulus_and_keep_their_phase() -> None:
    weights, cut = legs_spectrum(16)[1][:8], initial_spectrum("legs", 16).B[0]
    torch.testing.assert_close(cut.abs(), weights.abs().clamp_max(2), rtol=1e-12, atol=0)
    torch.testing.assert_close(cut.angle(), weights.angle(), rtol=0, atol=1e-12)
    assert (weights.abs() > 2).any() and (weights.abs() < 2).any()


def test_closed_forms() -> None:
    n, N = torch.arange(8).double(), 16
    forms = {
        "lin": math.pi * n,
        "inv": N / math.pi * (N / (2 * n + 1) - 1),
        "inv2": N / math.pi * (N / (n + 1) - 1),
        "quad": (1 + 2 * n) ** 2 / math.pi,
    }
    for init, frequency in forms.items():
        start = initial_spectrum(init, N)
        torch.testing.assert_close(start.frequency[0], frequency, rtol=1e-12, atol=0)
        assert (start.decay == 0.5).all() and (start.B == 1).all()
    real = initial_spectrum("real", 5, 2, is_real=True)
    assert real.decay.tolist() == [[1, 2, 3, 4, 5]] * 2 and not real.frequency.any()
    mixed = initial_spectrum("diag", N, 5)
    assert torch.equal(mixed.frequency, torch.stack([forms["inv"]] * 3 + [forms["lin"]] * 2))


def test_random_starts_and_scales() -> None:
    torch.manual_seed(0)
    start = initial_spectrum("rand", 64, 50, real_random=True, real_scale=2.0, imag_scale=3.0)
    logs = (start.frequency / 3).log()
    assert abs(logs.mean()) < 0.1 and abs(logs.std() - 1) < 0.1
    assert start.decay.min() > 0 and 1.9 < start.decay.max() < 2 and abs(start.decay.mean() - 1) < 0.1


def test_a_start_of_another_name_is_refused() -> None:
    with pytest.raises(InputError, match="init='hippo': choose one of legs, lin, inv"):
        initial_spectrum("hippo", 8)  # type: ignore[arg-type]


def test_transforms_and_their_inverses() -> None:
    value = torch.tensor([2e-4, 1e-3, 0.1, 0.5, 0.9], dtype=torch.float64)
    for transform in TRANSFORMS.values():
        torch.testing.assert_close(transform.forward(transform.inverse(value)), value, rtol=1e-10, atol=0)


@pytest.mark.parametrize("is_real", [False, True])
def test_a_time_step_of_each_kind_equals_that_of_the_dense_system(is_real: bool) -> None:
    """zoh is the exponential of [[A, B], [0, 0]] Δ, bilinear the Cayley transform."""
    torch.manual_seed(0)
    dtype = torch.float64 if is_real else torch.complex128
    A = -torch.rand(1, 6, dtype=torch.float64) + (
        0 if is_real else 3j * torch.randn(1, 6, dtype=torch.float64)
    )
    dt, eye, ones = (
        torch.tensor([[0.3]], dtype=torch.float64),
        torch.eye(6, dtype=dtype),
        torch.ones(6, 1, dtype=dtype),
    )
    augmented = torch.zeros(7, 7, dtype=dtype)
    augmented[:6] = torch.cat([A[0].diag(), ones], dim=1)
    step = torch.linalg.matrix_exp(0.3 * augmented)
    left = torch.linalg.inv(eye - 0.15 * A[0].diag())
    dense = {
        "zoh": (step[:6, :6], step[:6, 6]),
        "bilinear": (left @ (eye + 0.15 * A[0].diag()), 0.3 * (left @ ones)[:, 0]),
    }
    for how, (dA, dB) in dense.items():
        log_dA, gain = discretize(A, dt, how)
        ours = log_dA.exp()[0]
        torch.testing.assert_close(ours.real if is_real else ours, dA.diagonal(), rtol=0, atol=1e-13)
        torch.testing.assert_close(gain[0], dB, rtol=0, atol=1e-13)


def test_zoh_loses_nothing_at_small_steps() -> None:
    """(e^z − 1)/z by subtraction would be wrong from the eighth digit on."""
    A = torch.tensor([[-0.5 + 2j]], dtype=torch.complex128)
    dt = torch.tensor([[1e-8]], dtype=torch.float64)
    z = 1e-8 * A
    _, gain = discretize(A, dt, "zoh")
    torch.testing.assert_close(gain, dt * (1 + z / 2 + z * z / 6), rtol=1e-15, atol=0)


@pytest.mark.parametrize("how", ["zoh", "bilinear"])
def test_eigenvalues_on_the_boundary_have_finite_steps_and_gradients(how: str) -> None:
    """a = 0, where (e^z − 1)/z has no value of its own, and 1 + z/2 = 0, where ā has no logarithm."""
    A = torch.tensor([[0.0, -4.0]], dtype=torch.float64, requires_grad=True)
    dt = torch.tensor([[0.5]], dtype=torch.float64, requires_grad=True)
    log_dA, gain = discretize(A, dt, how)
    dA = log_dA.exp()
    torch.autograd.backward([dA.real.sum(), gain.sum()])
    expected = [1.0, math.exp(-2)] if how == "zoh" else [1.0, 0.0]
    torch.testing.assert_close(dA.real[0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    assert gain[0, 0].item() == 0.5 and A.grad.isfinite().all() and dt.grad.isfinite().all()
