"""RankMe, participation ratio, α-ReQ, anisotropy, TwoNN and linear CKA against their equations, and what moves them."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from rotations import rotation
from torch import Tensor

from eckart.metrics import (
    LinearCKA,
    RankMe,
    TwoNN,
    alpha_req,
    anisotropy,
    effective_rank,
    energy_rank,
    linear_cka,
    measure_states,
    normalised_states,
    participation_ratio,
    rankme,
    renyi_entropy,
    two_nn,
)

RAW = {"rankme": rankme, "anisotropy": anisotropy, "two_nn": two_nn}


def points(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spectrum_of(values: np.ndarray, n: int) -> Tensor:
    """A matrix (n, k) with these eigenvalues of XᵀX."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(n, len(values))))[0]
    return torch.as_tensor(q * np.sqrt(values))


def reference_two_nn(x: np.ndarray, discard: float = 0.1) -> float:
    """Written from the paper: sort μ, F_i = i/N, a line through the origin over the lowest 1 − discard."""
    far = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    np.fill_diagonal(far, np.inf)
    near = np.sort(far, axis=1)
    mu = np.sort(near[:, 1] / near[:, 0])
    keep = min(math.floor(len(mu) * (1 - discard) + 1e-9), len(mu) - 1)
    a, b = np.log(mu[:keep]), -np.log(1 - np.arange(1, keep + 1) / len(mu))
    return float(np.linalg.lstsq(a[:, None], b, rcond=None)[0][0])


def reference_hsic(K: np.ndarray, L: np.ndarray) -> float:
    n, one = len(K), np.ones(len(K))
    K, L = (M - np.diag(np.diag(M)) for M in (K, L))
    whole = (
        np.trace(K @ L)
        + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
        - 2 * one @ K @ L @ one / (n - 2)
    )
    return float(whole / (n * (n - 3)))


@pytest.mark.parametrize(("n", "d"), [(12, 30), (30, 12)])
def test_values_are_those_of_their_equations(n: int, d: int) -> None:
    h = points(n, d) + 1
    s = np.linalg.svd(h.numpy(), compute_uv=False)
    p = s / s.sum() + 1e-7
    assert float(rankme(h)) == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-9)
    z = normalised_states(h).numpy()
    eigen = np.linalg.svd(z, compute_uv=False)[: min(n - 1, d)] ** 2
    assert float(participation_ratio(h)) == pytest.approx(eigen.sum() ** 2 / (eigen**2).sum(), rel=1e-9)
    assert float(participation_ratio(h)) == pytest.approx(math.exp(renyi_entropy(h)), rel=1e-12)
    slope = np.polyfit(np.log(np.arange(1, len(eigen) + 1)), np.log(eigen), 1)[0]
    assert float(alpha_req(h)) == pytest.approx(-slope, rel=1e-6)
    part = np.polyfit(np.log([3, 4, 5, 6]), np.log(eigen[2:6]), 1)[0]
    assert float(alpha_req(h, first=3, last=6)) == pytest.approx(-part, rel=1e-6)
    unit = h.numpy() / np.linalg.norm(h.numpy(), axis=1, keepdims=True)
    cosine = unit @ unit.T
    assert float(anisotropy(h)) == pytest.approx(cosine[~np.eye(n, dtype=bool)].mean(), rel=1e-9)
    for share in (0.0, 0.1, 0.35):
        assert float(two_nn(h, discard=share)) == pytest.approx(reference_two_nn(h.numpy(), share), rel=1e-9)


def test_known_spectra() -> None:
    for alpha in (0.5, 1.0, 2.0):
        matrix = spectrum_of(np.arange(1, 21) ** -alpha, 40)
        assert float(alpha_req(matrix, normalise=False)) == pytest.approx(alpha, rel=1e-8)
    equal = spectrum_of(np.ones(7), 20)
    assert float(participation_ratio(equal, normalise=False)) == pytest.approx(7, rel=1e-9)
    assert float(rankme(equal)) == pytest.approx(7, rel=1e-4)
    assert float(rankme(10 * equal @ rotation(7, 3))) == pytest.approx(float(rankme(equal)), rel=1e-9)
    assert float(alpha_req(equal, normalise=False)) == pytest.approx(0, abs=1e-8)


def test_anisotropy_is_one_for_one_direction_and_below_zero_for_opposites() -> None:
    row = points(1, 9)
    assert float(
        anisotropy(torch.linspace(1, 3, 8, dtype=torch.float64).unsqueeze(1) * row)
    ) == pytest.approx(1)
    assert float(anisotropy(torch.cat([row, -row]))) == pytest.approx(-1)
    assert abs(float(anisotropy(points(400, 300)))) < 0.01 < float(anisotropy(points(400, 300) + 0.2))


@pytest.mark.parametrize("d", [1, 2, 5])
def test_two_nn_counts_the_dimensions_of_a_cube_wherever_it_lies(d: int) -> None:
    cube = torch.rand(1500, d, dtype=torch.float64, generator=torch.Generator().manual_seed(d))
    found = float(two_nn(cube))
    assert found == pytest.approx(d, rel=0.1)
    turned = 3 * cube @ rotation(12, 1)[:d] + 7
    assert float(two_nn(turned)) == pytest.approx(found, rel=1e-6)


def test_a_token_that_occurs_twice_is_left_out_of_two_nn() -> None:
    x = points(50, 4)
    twice = torch.cat([x, x[:1]])
    far = torch.cdist(twice, twice, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf)
    near = far.sort(1).values[1:50, :2].numpy()
    mu = np.sort(near[:, 1] / near[:, 0])
    mu = mu[np.isfinite(mu)]
    a, b = np.log(mu[:44]), -np.log(1 - np.arange(1, 45) / 49)
    assert float(two_nn(twice)) == pytest.approx(float(a @ b / (a @ a)), rel=1e-9)


@pytest.mark.parametrize("name", RAW)
def test_padding_batches_and_types(name: str) -> None:
    function, h = RAW[name], torch.stack([points(20, 6), points(20, 6, seed=1)])
    mask = torch.arange(20) < torch.tensor([[20], [11]])
    padded = torch.where(mask.unsqueeze(-1), h, torch.nan)
    found = function(padded, mask)
    for row, length in enumerate((20, 11)):
        torch.testing.assert_close(found[row], function(h[row, :length]))
    torch.testing.assert_close(measure_states(padded, mask, [name])[name], found)
    torch.testing.assert_close(function(padded, mask.long()), found)
    single = function(h.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), function(h), rtol=1e-4, atol=1e-6)
    broken = h.clone()
    broken[0, 3, 2] = torch.inf
    assert function(broken).isnan().tolist() == [True, False]


def test_what_cannot_be_measured_is_nan() -> None:
    assert (
        anisotropy(points(1, 4)).isnan() and anisotropy(torch.cat([points(3, 4), torch.zeros(1, 4)])).isnan()
    )
    assert two_nn(points(2, 4)).isnan() and two_nn(points(3, 4)).isnan() and not two_nn(points(4, 4)).isnan()
    assert two_nn(points(1, 4).expand(9, 4)).isnan()
    assert alpha_req(points(2, 4)).isnan() and not alpha_req(points(3, 4)).isnan()
    assert rankme(points(0, 4)).isnan() and rankme(points(1, 4)) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("shapes", [((40, 6), (40, 9)), ((8, 30), (8, 20))])
def test_linear_cka_is_its_equation(shapes) -> None:
    x, y = points(*shapes[0]), points(*shapes[1], seed=1)
    y[:, :3] += x[:, :3]
    a, b = (m.numpy() - m.numpy().mean(0) for m in (x, y))
    wanted = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert float(linear_cka(x, y)) == pytest.approx(wanted, rel=1e-9)
    assert float(linear_cka(y, x)) == pytest.approx(wanted, rel=1e-9)
    width = shapes[0][1]
    assert float(linear_cka(x, 5 * x @ rotation(width, 2) + 3)) == pytest.approx(1, rel=1e-9)
    assert float(linear_cka(x, x * torch.linspace(0.1, 3, width))) < 0.99
    mask = torch.arange(shapes[0][0]) < shapes[0][0] - 2
    torch.testing.assert_close(linear_cka(x, y, mask), linear_cka(x[:-2], y[:-2]))


def test_unbiased_cka_over_batches_is_its_equation_and_has_no_floor() -> None:
    layers = [points(24, 5), points(24, 40, seed=1), points(24, 7, seed=2)]
    layers[2][:, :5] += layers[0]
    sums = np.zeros((3, 3))
    cka = LinearCKA()
    for part in (slice(0, 10), slice(10, 24)):
        batch = [layer[part] for layer in layers]
        cka.update(batch)
        grams = [(b - b.mean(0)).numpy() @ (b - b.mean(0)).numpy().T for b in batch]
        sums += np.array([[reference_hsic(K, L) for L in grams] for K in grams])
    wanted = sums / np.sqrt(np.outer(sums.diagonal(), sums.diagonal()))
    np.testing.assert_allclose(cka.compute().numpy(), wanted, rtol=1e-9)
    wide = LinearCKA()
    x, y = points(60, 500), points(60, 500, seed=3)
    wide.update([x], [y])
    assert abs(float(wide.compute())) < 0.1 < 0.8 < float(linear_cka(x, y))


def test_two_models_may_differ_in_layers_and_widths() -> None:
    first, second = (
        [points(9, 4), points(9, 6, seed=1)],
        [points(9, 4), points(9, 5, seed=2), points(9, 3, seed=4)],
    )
    cka = LinearCKA()
    cka.update(first, second)
    found = cka.compute()
    assert found.shape == (2, 3) and float(found[0, 0]) == pytest.approx(1)
    turned = LinearCKA()
    turned.update(second, first)
    torch.testing.assert_close(turned.compute(), found.mT)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: two_nn(points(5, 3), discard=1.0), "discard is 1.0: give a share in"),
        (lambda: alpha_req(points(5, 3), first=0), "first is 0: give a whole number of at least 1"),
        (lambda: alpha_req(points(5, 3), first=3, last=3), "first = 3, last = 3"),
        (lambda: linear_cka(points(5, 3), points(6, 3)), "representations of the same tokens"),
        (lambda: LinearCKA().compute(), "has seen no batch"),
        (lambda: LinearCKA().update([points(3, 3)]), "the same n ≥ 4"),
        (lambda: LinearCKA().update([points(5, 3), points(6, 3)]), "the same n ≥ 4"),
        (lambda: LinearCKA().update([points(5, 3)], [points(6, 3)]), "layers have 5 tokens and others 6"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_means_over_texts() -> None:
    h = torch.stack([points(12, 5), points(12, 5, seed=1)])
    for cls, function in ((RankMe, rankme), (TwoNN, two_nn)):
        metric = cls()
        metric.update(h)
        torch.testing.assert_close(metric.compute(), function(h).mean())
    loose = TwoNN(discard=0.4)
    loose.update(h)
    torch.testing.assert_close(loose.compute(), two_nn(h, discard=0.4).mean())


def test_options_left_out() -> None:
    for function, options in {
        alpha_req: {"first": 1, "last": None, "normalise": True},
        two_nn: {"discard": 0.1},
        energy_rank: {"energy": 0.9, "normalise": True},
        effective_rank: {"power": 1.0, "normalise": True},
    }.items():
        parameters = inspect.signature(function).parameters
        assert {n: p.default for n, p in parameters.items() if n not in ("hidden", "mask")} == options


def test_eigenvalues_of_zero_take_no_part_in_the_slope() -> None:
    """Two directions of eight: α = log₂ of the quotient of their eigenvalues."""
    h = torch.nn.functional.pad(spectrum_of(np.array([5.0, 2.0]), 8), (0, 4))
    assert alpha_req(h, normalise=False) == pytest.approx(math.log2(2.5))
    assert alpha_req(torch.cat([h, h.new_zeros(3, 6)]), normalise=False) == pytest.approx(math.log2(2.5))


@pytest.mark.parametrize("discard", [0.0, 0.3, 0.5])
def test_two_nn_leaves_out_the_largest_share_and_always_the_last(discard: float) -> None:
    h, n = points(10, 3), 10
    near = torch.cdist(h, h).fill_diagonal_(torch.inf).sort(1).values
    x = (near[:, 1] / near[:, 0]).log().sort().values
    kept = min(math.floor(n * (1 - discard) + 1e-9), n - 1)
    y = -torch.log(1 - torch.arange(1, kept + 1) / n)
    torch.testing.assert_close(two_nn(h, discard=discard), (x[:kept] * y).sum() / (x[:kept] ** 2).sum())
