import pytest
import torch

from eckart.linalg.moments import add_rows, moments_of_table, no_moments, output_energy

X = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3


def gathered(*sizes, x=X):
    moments = no_moments(x.shape[1])
    for part in x.split(list(sizes)):
        moments = add_rows(moments, part)
    return moments


@pytest.mark.parametrize("sizes", [(60,), (1, 59), (7, 13, 40), (20, 0, 40)])
def test_batches_of_any_size_give_the_same_moments(sizes):
    moments = gathered(*sizes)
    assert moments.rows == 60
    torch.testing.assert_close(moments.mean, X.mean(0))
    torch.testing.assert_close(moments.covariance, torch.cov(X.T, correction=0))
    torch.testing.assert_close(moments.second, X.T @ X / 60)


def test_a_large_mean_in_float32_does_not_eat_the_variance():
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1))
    far = gathered(1000, 3000, x=x + 3000)
    near = gathered(1000, 3000, x=(x + 3000).double())
    torch.testing.assert_close(far.covariance, near.covariance, rtol=2e-3, atol=2e-3)


def test_a_table_seen_by_counts_is_its_lookups():
    ids = torch.tensor([0, 0, 3, 3, 3, 4])
    counts = torch.bincount(ids, minlength=60)
    by_counts, by_rows = moments_of_table(X, counts), add_rows(no_moments(5), X[ids])
    assert by_counts.rows == 6
    torch.testing.assert_close(by_counts.mean, by_rows.mean)
    torch.testing.assert_close(by_counts.scatter, by_rows.scatter)


@pytest.mark.parametrize("bias", [None, torch.arange(4.0).double()])
def test_output_energy_is_the_mean_square_of_the_outputs(bias):
    weight = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = torch.nn.functional.linear(X, weight, bias)
    torch.testing.assert_close(output_energy(gathered(60), weight, bias), y.square().mean(0))
