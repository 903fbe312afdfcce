"""The cosine transform: orthogonal, equal to SciPy's, the FFT equal to the matrix."""

import numpy as np
import pytest
import scipy.fft
import torch

from eckart.linalg.dct import dct2, dct3, dct_l1_norms, dct_matrix

SIZES = [1, 2, 3, 4, 5, 24, 33]


@pytest.mark.parametrize("n", [*SIZES, 2048])
def test_matrix_is_orthogonal_to_rounding(n: int) -> None:
    q = dct_matrix(n)
    assert float((q @ q.mT - torch.eye(n, dtype=torch.float64)).abs().max()) < 1e-12


@pytest.mark.parametrize("n", SIZES)
def test_matrix_and_fft_are_scipys_transforms(n: int) -> None:
    x = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    q = dct_matrix(n)
    for kind, fast, product in ((2, dct2(x), x @ q.mT), (3, dct3(x), x @ q)):
        wanted = scipy.fft.dct(x.numpy(), type=kind, norm="ortho")
        np.testing.assert_allclose(fast, wanted, atol=1e-12)
        np.testing.assert_allclose(product, wanted, atol=1e-12)
    torch.testing.assert_close(dct3(dct2(x)), x, rtol=0, atol=1e-12)


def test_row_i_has_frequency_i() -> None:
    row = dct_matrix(8)[3]
    assert int(torch.signbit(row).diff().count_nonzero()) == 3


def test_fft_reads_a_transposed_view_and_leaves_it_as_it_is() -> None:
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    torch.testing.assert_close(dct2(x.mT), x.mT @ dct_matrix(6, torch.float32).mT)
    torch.testing.assert_close(dct3(x.mT), x.mT @ dct_matrix(6, torch.float32))
    assert torch.equal(x, before) and dct2(x.mT).is_contiguous()


@pytest.mark.parametrize("fast", [dct2, dct3])
@pytest.mark.parametrize("shape", [(3, 8), (0, 8), (2, 3, 7)])
def test_fft_is_opaque_to_compilers(fast: object, shape: tuple[int, ...]) -> None:
    torch.library.opcheck(fast, (torch.randn(shape),))


@pytest.mark.parametrize("n", [1, 7, 300])
def test_l1_norms_without_the_matrix(n: int) -> None:
    q = dct_matrix(n).abs()
    torch.testing.assert_close(dct_l1_norms(n, "rows"), q.sum(1))
    torch.testing.assert_close(dct_l1_norms(n, "columns"), q.sum(0))
