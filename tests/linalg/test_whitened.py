import pytest
import torch

from eckart.linalg.moments import add_rows, no_moments
from eckart.linalg.spectrum import SVD
from eckart.linalg.whitened import balanced, mimic_factors, output_error, output_spectrum, svd_factors


def problem(out=9, width=6, tokens=80, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, dtype=torch.float64, generator=generator) * torch.arange(1, width + 1) + 2
    weight = torch.randn(out, width, dtype=torch.float64, generator=generator)
    bias = torch.randn(out, dtype=torch.float64, generator=generator)
    return x, weight, bias, add_rows(no_moments(width), x)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7)])
def test_spectrum_is_that_of_the_outputs(shape):
    x, weight, _, moments = problem(*shape)
    spectrum = output_spectrum(weight, moments.covariance)
    direct = torch.linalg.eigvalsh(torch.cov((x @ weight.T).T, correction=0)).flip(0)[: min(shape)]
    torch.testing.assert_close(spectrum.values, direct)
    torch.testing.assert_close(spectrum.basis.T @ spectrum.basis, torch.eye(min(shape), dtype=torch.float64))
    assert spectrum.basis.shape == (shape[0], min(shape))


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_uncentred_factors_are_the_whitened_svd(shape):
    x, weight, bias, moments = problem(*shape)
    factors = mimic_factors(weight, bias, output_spectrum(weight, moments.second).basis[:, :3])
    root = torch.linalg.cholesky(x.T @ x / len(x))
    u, s, vh = torch.linalg.svd(weight @ root, full_matrices=False)
    torch.testing.assert_close(
        factors.product, (u[:, :3] * s[:3]) @ vh[:3] @ torch.linalg.inv(root), rtol=1e-9, atol=1e-9
    )
    assert factors.bias is not None and torch.equal(factors.bias, bias)


def test_centred_error_is_the_sum_of_the_values_left_out_and_the_mean_is_kept():
    x, weight, bias, moments = problem()
    spectrum = output_spectrum(weight, moments.covariance)
    factors = mimic_factors(weight, bias, spectrum.basis[:, :2], moments.mean)
    y, guess = x @ weight.T + bias, x @ factors.A.T @ factors.B.T + factors.bias
    torch.testing.assert_close(
        (y - guess).square().sum(1).mean(), spectrum.values[2:].sum(), rtol=1e-9, atol=0
    )
    assert output_error(weight, bias, factors, moments) == pytest.approx(
        float(spectrum.values[2:].sum()), rel=1e-9
    )
    torch.testing.assert_close(guess.mean(0), y.mean(0))


def test_an_error_of_nothing_is_not_below_zero():
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(16, 12, generator=generator), torch.randn(3, 12, generator=generator)
    moments = add_rows(no_moments(12), x)
    factors = mimic_factors(
        weight, None, output_spectrum(weight, moments.covariance).basis[:, :6], moments.mean
    )
    change = weight.double() - factors.product
    assert float(((change @ moments.covariance) * change).sum()) < 0, "rounding of three rows in float32"
    assert 0 <= output_error(weight, None, factors, moments) < 1e-12


def test_errors_are_ordered_centred_uncentred_plain():
    _, weight, bias, moments = problem()
    centred = mimic_factors(
        weight, bias, output_spectrum(weight, moments.covariance).basis[:, :2], moments.mean
    )
    uncentred = mimic_factors(weight, bias, output_spectrum(weight, moments.second).basis[:, :2])
    plain = svd_factors(SVD(*torch.linalg.svd(weight, full_matrices=False)), 2, bias)
    errors = [output_error(weight, bias, f, moments) for f in (centred, uncentred, plain)]
    assert errors[0] < errors[1] < errors[2]


def test_centring_gives_a_bias_where_there_was_none():
    x, weight, _, moments = problem()
    factors = mimic_factors(
        weight, None, output_spectrum(weight, moments.covariance).basis[:, :2], moments.mean
    )
    y, guess = x @ weight.T, x @ factors.A.T @ factors.B.T + factors.bias
    torch.testing.assert_close(guess.mean(0), y.mean(0))
    assert mimic_factors(weight, None, factors.B).bias is None


def test_a_singular_gram_matrix_is_as_good_as_any():
    x, weight, _, _ = problem(tokens=3)
    moments = add_rows(no_moments(6), x)
    factors = mimic_factors(weight, None, output_spectrum(weight, moments.second).basis[:, :3])
    torch.testing.assert_close(x @ factors.product.T, x @ weight.T, rtol=1e-8, atol=1e-8)


def test_balanced_factors_are_the_same_map_with_the_same_gram():
    _, weight, bias, moments = problem()
    before = mimic_factors(
        weight, bias, output_spectrum(weight, moments.covariance).basis[:, :3], moments.mean
    )
    after = balanced(before)
    torch.testing.assert_close(after.product, before.product)
    torch.testing.assert_close(after.A @ after.A.T, after.B.T @ after.B)
    assert after.bias is before.bias
