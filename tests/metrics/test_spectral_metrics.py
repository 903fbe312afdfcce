"""Entropies, norms and ranks against their definitions on singular values, and against each other."""

from __future__ import annotations

import math

import pytest
import torch
from rotations import rotation
from torch import Tensor

from eckart.linalg import spectrum
from eckart.metrics import (
    METRICS,
    effective_rank,
    energy_rank,
    matrix_entropy,
    measure_states,
    normalised_states,
    nuclear_norm,
    renyi_entropy,
    schatten_norm,
    stable_rank,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
SHAPES = pytest.mark.parametrize(("n", "d"), [(12, 30), (30, 12), (10, 10)])


def states(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def isotropic(k: int, d: int) -> Tensor:
    """Tokens ±e_1 … ±e_k: centred, of unit length, k equal singular values."""
    basis = torch.eye(d, dtype=torch.float64)[:k]
    return torch.cat([basis, -basis])


@SHAPES
def test_values_are_those_of_the_singular_values(n: int, d: int) -> None:
    h = states(n, d)
    s = spectrum.singular_values(normalised_states(h))
    shares = s.square() / s.square().sum()
    shares = shares[shares > 1e-12]
    wanted = {
        "matrix_entropy": -(shares * shares.log()).sum() / math.log(d),
        "renyi_entropy": -shares.square().sum().log(),
        "nuclear_norm": s.sum() / n,
        "effective_rank": spectrum.effective_rank(s),
        "energy_rank": spectrum.rank_within(s, math.sqrt(0.1)).double(),
        "stable_rank": n / s[0].square(),
    }
    found = measure_states(h, metrics=list(wanted))
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-8)
    for p in (0.5, 1, 3, math.inf):
        value = torch.linalg.vector_norm(s, p)
        torch.testing.assert_close(schatten_norm(h, p=p, per_token=False), value, rtol=1e-6, atol=0)
    frobenius = torch.tensor(math.sqrt(n), dtype=torch.float64)
    torch.testing.assert_close(schatten_norm(h, p=2, per_token=False), frobenius, **CLOSE)


@pytest.mark.parametrize("name", METRICS)
def test_one_pass_gives_what_the_function_gives(name: str) -> None:
    import eckart.metrics

    h = states(9, 14).view(1, 9, 14).repeat(2, 1, 1)
    h[1, :5] *= 3
    mask = torch.tensor([[True] * 9, [True] * 6 + [False] * 3])
    torch.testing.assert_close(
        measure_states(h, mask)[name], getattr(eckart.metrics, name)(h, mask), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("name", [name for name in METRICS if name != "matrix_nuclear_norm"])
@SHAPES
def test_a_rotation_of_the_features_changes_nothing(name: str, n: int, d: int) -> None:
    h = states(n, d)
    rotated = h @ rotation(d, 1)
    torch.testing.assert_close(
        measure_states(rotated, metrics=[name]), measure_states(h, metrics=[name]), **CLOSE
    )


@SHAPES
@pytest.mark.parametrize("relative", [True, False])
def test_entropy_of_the_gram_side_is_that_of_the_covariance_side(n: int, d: int, relative: bool) -> None:
    z = normalised_states(states(n, d))
    short = matrix_entropy(z, relative=False, normalise=False)
    values = torch.linalg.eigvalsh(z.mT @ z / n)
    values = values[values > 1e-12]
    wanted = -(values * values.log()).sum()
    torch.testing.assert_close(short, wanted, **CLOSE)
    torch.testing.assert_close(matrix_entropy(z.mT, relative=False, normalise=False), wanted, **CLOSE)
    scale = math.log(d) if relative else 1.0
    torch.testing.assert_close(matrix_entropy(states(n, d), relative=relative), wanted / scale, **CLOSE)


def test_rank_one_has_no_entropy() -> None:
    row = states(1, 16)
    h = torch.linspace(-2, 3, 10, dtype=torch.float64).unsqueeze(1) * row
    assert abs(matrix_entropy(h)) < 1e-10
    for rank in (effective_rank(h), stable_rank(h), energy_rank(h)):
        torch.testing.assert_close(rank, torch.ones_like(rank), **CLOSE)


@pytest.mark.parametrize("k", [2, 5, 16])
def test_equal_singular_values_count_themselves(k: int) -> None:
    h = isotropic(k, 16) @ rotation(16, k)
    wanted = torch.tensor(float(k), dtype=torch.float64)
    torch.testing.assert_close(matrix_entropy(h), wanted.log() / math.log(16), **CLOSE)
    torch.testing.assert_close(matrix_entropy(h, relative=False), wanted.log(), **CLOSE)
    torch.testing.assert_close(renyi_entropy(h), wanted.log(), **CLOSE)
    torch.testing.assert_close(effective_rank(h), wanted, **CLOSE)
    torch.testing.assert_close(effective_rank(h, power=2), wanted, **CLOSE)
    torch.testing.assert_close(stable_rank(h), wanted, **CLOSE)
    assert energy_rank(h, energy=0.95) == math.ceil(0.95 * k) and energy_rank(h, energy=1.0) == k


@SHAPES
def test_the_entropies_and_ranks_are_in_order(n: int, d: int) -> None:
    h = states(n, d) * 0.8 ** torch.arange(d)
    assert renyi_entropy(h) <= matrix_entropy(h, relative=False)
    torch.testing.assert_close(
        effective_rank(h, power=2), matrix_entropy(h, relative=False).exp(), rtol=1e-8, atol=0
    )
    assert 1 <= stable_rank(h) <= effective_rank(h, power=2) <= effective_rank(h) <= min(n, d)


def test_energy_rank_is_the_smallest_that_holds_the_share() -> None:
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0]).double())
    found = {
        share: int(energy_rank(matrix, energy=share, normalise=False)) for share in (0.6, 0.9, 0.93, 1.0)
    }
    assert found == {0.6: 1, 0.9: 2, 0.93: 3, 1.0: 3}


@pytest.mark.parametrize("function", [matrix_entropy, renyi_entropy, nuclear_norm])
@pytest.mark.parametrize(("n", "d"), [(5, 8), (8, 5)])
def test_gradients_are_those_of_finite_differences(function, n: int, d: int) -> None:
    h = states(n, d).requires_grad_()
    assert torch.autograd.gradcheck(function, h, eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (energy_rank, {"energy": 0.0}, "energy is 0.0: give a share in"),
        (energy_rank, {"energy": 1.5}, "energy is 1.5: give a share in"),
        (energy_rank, {"energy": math.nan}, "energy is nan: give a number"),
        (schatten_norm, {"p": 0}, "p is 0: give a positive number"),
        (schatten_norm, {"p": math.nan}, "p is nan: give a number"),
        (effective_rank, {"power": -1.0}, "power is -1.0: give a positive number"),
        (effective_rank, {"power": math.inf}, "power is inf: give a positive number"),
    ],
)
def test_options_out_of_range_are_refused(function, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(states(4, 4), **options)


def test_an_unknown_metric_is_refused_by_its_nearest_name() -> None:
    with pytest.raises(ValueError, match="unknown metric 'fractal': known are matrix_nuclear_norm, "):
        measure_states(states(4, 4), metrics=["fractal"])
    with pytest.raises(ValueError, match="'matrix_entropie': did you mean 'matrix_entropy'"):
        measure_states(states(4, 4), metrics=["matrix_entropie"])
