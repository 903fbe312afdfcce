"""One pass in blocks, heavy rows apart; Oja's rule; and streams that are cut, sorted, sparse, or too long."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from problems import cos2, hard_rows, light_rows
from sklearn.exceptions import ConvergenceWarning

from eckart.recovery import StreamingPCA

ROWS = light_rows(2000, 20, 4.0)
HEAVY = (
    light_rows(600, 20, 4.0, seed=1) * np.where(np.random.default_rng(0).random(600) < 0.03, 6, 1)[:, None]
)


def streamed(rows, chunk: int, **options) -> StreamingPCA:
    pca = StreamingPCA(**{"n_samples": rows.shape[0], "random_state": 0} | options)
    for start in range(0, rows.shape[0], chunk):
        pca.partial_fit(rows[start : start + chunk])
    return pca.finalize()


def test_one_block_is_one_power_step() -> None:
    z = np.random.default_rng(0).normal(size=(20, 1))
    pca = StreamingPCA(n_blocks=1, oversample=0, init=z, heavy_threshold=np.inf).fit(ROWS)
    step = ROWS.T @ (ROWS @ z)[:, 0]
    np.testing.assert_allclose(np.abs(pca.components_[0] @ step), np.linalg.norm(step), rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{}, {"center": True}, {"max_heavy": 5}, {"method": "oja-grid", "n_components": 1, "eta": [1e-3, 1e-2]}],
)
def test_chunks_of_any_size_give_the_same(options) -> None:
    fits = [
        streamed(HEAVY, chunk, **{"n_components": 2, "heavy_factor": 4.0} | options)
        for chunk in (1, 7, 64, 600)
    ]
    for fitted in fits[1:] if "center" not in options else fits[1:3]:  # the whole at once has the exact mean
        np.testing.assert_allclose(fitted.components_, fits[0].components_, atol=1e-10)
    if "method" not in options:
        assert 0 < fits[0].n_heavy_ <= options.get("max_heavy", 256)


@pytest.mark.parametrize("method", ["block", "oja-grid"])
def test_sparse_rows_give_the_same(method: str) -> None:
    rows = sp.random_array((600, 30), density=0.2, random_state=np.random.default_rng(0)).tocsr()
    fits = [
        StreamingPCA(method=method, random_state=0).fit(form) for form in (rows, rows.toarray(), rows.tocoo())
    ]
    for fitted in fits[1:]:
        np.testing.assert_allclose(fitted.components_, fits[0].components_, atol=1e-10)
    np.testing.assert_allclose(fits[0].transform(rows), fits[0].transform(rows.toarray()), atol=1e-12)


@pytest.mark.parametrize("method", ["block", "oja"])
def test_indices_of_32_and_64_bits_give_the_same(method: str) -> None:
    fits = []
    for index in (np.int32, np.int64):
        rows = sp.random_array((300, 30), density=0.2, random_state=np.random.default_rng(0)).tocsr()
        rows.indices, rows.indptr = rows.indices.astype(index), rows.indptr.astype(index)
        fits.append(StreamingPCA(method=method, random_state=0).fit(rows))
        fits.append(streamed(rows, 64, method=method, shuffle_buffer=50))
    for a, b in ((0, 2), (1, 3)):
        np.testing.assert_array_equal(fits[a].components_, fits[b].components_)


def test_all_rows_heavy_is_the_power_method_on_what_was_seen() -> None:
    rows, z = HEAVY[:200], np.linalg.qr(np.random.default_rng(0).normal(size=(20, 1)))[0]
    pca = StreamingPCA(n_blocks=4, oversample=0, init=z, heavy_threshold=1e-300).fit(rows)
    for seen in (50, 100, 150, 200):
        z = rows[:seen].T @ (rows[:seen] @ z)
        z /= np.linalg.norm(z)
    np.testing.assert_allclose(np.abs(pca.components_[0] @ z), 1, rtol=1e-12)
    assert pca.n_heavy_ == 200


def test_error_falls_with_the_length_of_the_stream() -> None:
    errors = []
    for n in (2000, 8000):
        rows = light_rows(n, 20, 4.0, seed=3)
        errors.append(
            np.mean([1 - cos2(StreamingPCA(random_state=s).fit(rows).components_[0], rows) for s in range(8)])
        )
    assert errors[0] < 0.05 and 2.5 < errors[0] / errors[1] < 6


@pytest.mark.parametrize("gap", [2.0, 4.0, 16.0])
def test_correlation_exceeds_the_bound(gap: float) -> None:
    rows = light_rows(3000, 20, gap)
    assert cos2(StreamingPCA(random_state=0).fit(rows).components_[0], rows) >= 1 - 1 / np.sqrt(gap)


def test_heavy_rows_are_what_others_stumble_over() -> None:
    rows = hard_rows(1500, 200, 2.0, 75)
    kept = StreamingPCA(random_state=0).fit(rows)
    dropped = StreamingPCA(random_state=0, heavy_threshold=np.inf).fit(rows)
    oja = StreamingPCA(method="oja-grid", random_state=0).fit(rows)
    best = max(cos2(v, rows) for v in oja.candidates_)
    assert cos2(kept.components_[0], rows) > 0.98
    assert cos2(dropped.components_[0], rows) < 0.8 and best < 0.92
    assert kept.n_heavy_ == 75


def test_the_order_inside_a_block_does_not_matter() -> None:
    options = {"random_state": 0, "n_blocks": 4, "heavy_threshold": 20.0}
    shuffled = ROWS.reshape(4, 500, 20)[:, np.random.default_rng(0).permutation(500)].reshape(2000, 20)
    a, b = (StreamingPCA(**options).fit(rows) for rows in (ROWS, shuffled))
    np.testing.assert_allclose(a.components_, b.components_, atol=1e-10)


def test_several_components_and_their_values() -> None:
    rows = np.random.default_rng(0).normal(size=(4000, 20)) * np.r_[6, 4, 3, np.ones(17)]
    pca = StreamingPCA(3, random_state=0).fit(rows)
    _, sigma, vh = np.linalg.svd(rows, full_matrices=False)
    np.testing.assert_allclose(np.abs((pca.components_ * vh[:3]).sum(1)), 1, atol=1e-2)
    np.testing.assert_allclose(pca.singular_values_, sigma[:3], rtol=0.1)
    np.testing.assert_allclose(pca.components_ @ pca.components_.T, np.eye(3), atol=1e-10)
    share = (sigma[:3] ** 2).sum() / (sigma**2).sum()
    assert pca.score(rows) == pytest.approx(share, abs=0.01)
    assert list(pca.get_feature_names_out()) == ["streamingpca0", "streamingpca1", "streamingpca2"]
    assert (np.abs(pca.components_).max(1) == pca.components_.max(1)).all()


def test_centred() -> None:
    rows = ROWS + 10 * np.ones(20)
    pca = StreamingPCA(center=True, random_state=0).fit(rows)
    assert cos2(pca.components_[0], rows - rows.mean(0)) > 0.95
    np.testing.assert_allclose(pca.mean_, rows.mean(0))
    np.testing.assert_allclose(pca.transform(rows).mean(0), 0, atol=1e-9)
    later = streamed(rows, 100, center=True)
    assert cos2(later.components_[0], rows - rows.mean(0)) > 0.9


def test_length_unknown() -> None:
    pca = StreamingPCA(random_state=0)
    for start in range(0, 2000, 100):
        pca.partial_fit(ROWS[start : start + 100])
    assert cos2(pca.finalize().components_[0], ROWS) > 0.9
    np.testing.assert_array_equal(pca.block_starts_, [0, 20, 60, 140, 300, 620])


def test_components_are_there_from_the_first_row_on_and_finalize_may_be_repeated() -> None:
    pca = StreamingPCA(random_state=0, n_samples=2000).partial_fit(ROWS[:1])
    assert pca.components_.shape == (1, 20) and pca.n_samples_seen_ == 1
    pca.partial_fit(ROWS[1:])
    first = pca.finalize().components_
    np.testing.assert_array_equal(first, pca.finalize().components_)


def test_sorted_streams_are_noticed_and_a_buffer_shuffles_them() -> None:
    size = np.abs(ROWS @ np.linalg.svd(ROWS)[2][0])
    falling = ROWS[np.argsort(-size)]
    with pytest.warns(UserWarning, match="not in random order; set shuffle_buffer"):
        bad = StreamingPCA(random_state=0).fit(falling)
    good = StreamingPCA(random_state=0, shuffle_buffer=2000).fit(falling)
    assert cos2(bad.components_[0], falling) < 0.5 < 0.95 < cos2(good.components_[0], falling)
    assert good.n_samples_seen_ == 2000


def test_a_buffer_of_sparse_rows(tmp_path) -> None:
    rows = sp.csr_array(ROWS)
    pca = StreamingPCA(random_state=0, shuffle_buffer=300, n_samples=2000)
    for start in range(0, 2000, 500):
        pca.partial_fit(rows[start : start + 500])
        assert pca.n_samples_seen_ == start + 500
    pca.save(tmp_path / "half")
    again = StreamingPCA.load(tmp_path / "half")
    np.testing.assert_array_equal(again.finalize().components_, pca.finalize().components_)


def test_memory_does_not_grow_with_the_stream() -> None:
    rows = [light_rows(500, 50, 4.0, seed) for seed in range(4)]

    def numbers_held(chunks: int) -> int:
        pca = StreamingPCA(random_state=0, max_heavy=32, heavy_factor=50, n_samples=500 * chunks)
        for i in range(chunks):
            pca.partial_fit(rows[i % 4])
            assert pca.n_heavy_ <= 32
        return sum(t.numel() for t in vars(pca._state).values() if isinstance(t, torch.Tensor))

    assert numbers_held(40) <= numbers_held(4) < 50 * (32 + 3 * 5 + 4)


def test_oja_is_oja() -> None:
    rows, v0 = HEAVY[:150], np.random.default_rng(0).normal(size=20)
    rates = [1e-3, 1e-1, 10.0]
    pca = StreamingPCA(method="oja-grid", eta=rates, init=v0, n_samples=150).fit(rows)
    for eta, found, growth in zip(rates, pca.candidates_, pca.log_growth_, strict=True):
        v, total = v0 / np.linalg.norm(v0), 0.0
        for a in rows:
            v = v + eta * a * (a @ v)
            total, v = total + np.log(np.linalg.norm(v)), v / np.linalg.norm(v)
        np.testing.assert_allclose(found, v, atol=1e-9)
        assert growth == pytest.approx(total, rel=1e-10)
    assert pca.chosen_ == next(i for i, g in enumerate(pca.log_growth_) if g >= np.log(20))


def test_oja_finds_the_direction_and_float32_does_not_overflow() -> None:
    for rows in (ROWS, ROWS.astype(np.float32) * 100):
        for method in ("oja", "oja-grid"):
            pca = StreamingPCA(method=method, random_state=0).fit(rows)
            assert cos2(pca.components_[0].astype(float), rows.astype(float)) > 0.95


def spiked(n: int) -> np.ndarray:
    """Rows with three directions of 36, 16 and 9 times the variance of the rest, turned out of the axes."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    return rng.normal(size=(n, 20)) * np.r_[6, 4, 3, np.ones(17)] @ turn


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_oja_finds_several_directions(dtype: type) -> None:
    rows = spiked(4000).astype(dtype)
    pca = StreamingPCA(3, method="oja", random_state=0).fit(rows)
    _, sigma, vh = np.linalg.svd(rows.astype(float), full_matrices=False)
    np.testing.assert_allclose(pca.components_ @ pca.components_.T, np.eye(3), atol=1e-5)
    cosines = np.linalg.svd(pca.components_ @ vh[:3].T)[1]
    assert cosines.min() > 0.99
    assert (np.diff(pca.singular_values_) <= 0).all()
    np.testing.assert_allclose(pca.singular_values_, sigma[:3], rtol=0.2)
    assert (np.abs(pca.components_).max(1) == pca.components_.max(1)).all()
    assert pca.transform(rows).shape == (4000, 3)


def test_oja_of_several_is_a_qr_after_each_row() -> None:
    rows, start, eta = spiked(150), np.random.default_rng(1).normal(size=(20, 3)), 1e-2
    fits = [streamed(rows, chunk, n_components=3, method="oja", eta=eta, init=start) for chunk in (1, 7, 150)]
    V, growth = np.linalg.qr(start)[0], np.zeros(3)
    for a in rows:
        V, r = np.linalg.qr(V + eta * np.outer(a, a @ V))
        growth += np.log(np.abs(np.diag(r)))
    for fitted in fits:
        np.testing.assert_allclose(np.abs((fitted.candidates_ * V.T).sum(1)), 1, atol=1e-10)
        np.testing.assert_allclose(fitted.log_growth_, growth, rtol=1e-9)


def test_no_rate_that_grew_gives_the_largest_row() -> None:
    with pytest.warns(ConvergenceWarning, match="the row of the largest norm is taken"):
        pca = StreamingPCA(method="oja-grid", eta=[1e-9], random_state=0).fit(HEAVY)
    largest = HEAVY[np.argmax((HEAVY**2).sum(1))]
    assert pca.chosen_ == -1
    np.testing.assert_allclose(np.abs(pca.components_[0] @ largest), np.linalg.norm(largest))


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [
        ({"n_components": 21}, ROWS, "n_components is 21: at most the 20 features"),
        ({"n_samples": 7}, ROWS, "n_samples is 7, but X has 2000 rows"),
        ({}, ROWS[:0], "0 sample"),
        ({}, ROWS[0], "Expected 2D array, got 1D array instead"),
        ({"init": np.ones((3, 1))}, ROWS, r"init has shape \(3, 1\)"),
        ({"method": "oja-grid", "n_components": 2}, ROWS, "n_components is 2: method='oja-grid' finds one"),
        ({"method": "oja", "center": True}, ROWS, "center is True: method='oja' finds vectors of AᵀA"),
        ({"method": "oja", "eta": [0.1, 0.2]}, ROWS, "one number for method='oja'"),
        ({"method": "oja-grid", "eta": [-0.1]}, ROWS, "positive"),
        ({"n_blocks": 0}, ROWS, r"^n_blocks is .*: give "),
    ],
)
def test_bad_input(options, rows, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamingPCA(**options).fit(rows)


def test_bad_streams_leave_the_state_as_it_was() -> None:
    pca = StreamingPCA(random_state=0, n_samples=100).partial_fit(ROWS[:60])
    before = pca.components_
    with pytest.raises(
        ValueError, match="X has 7 features, but StreamingPCA is expecting 20 features as input"
    ):
        pca.partial_fit(ROWS[:5, :7])
    with pytest.raises(ValueError, match="n_samples is 100, and this is row 110"):
        pca.partial_fit(ROWS[:50])
    with pytest.raises(ValueError, match="NaN"):
        pca.partial_fit(np.full((1, 20), np.nan))
    np.testing.assert_array_equal(before, pca.components_)
    assert pca.n_samples_seen_ == 60
    with pytest.raises(ValueError, match="give n_samples"):
        StreamingPCA(method="oja").partial_fit(ROWS)


@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (1, 1)])
def test_one_row_or_one_column(shape) -> None:
    rows = np.random.default_rng(0).normal(size=shape)
    pca = StreamingPCA(random_state=0).fit(rows)
    assert cos2(pca.components_[0], rows) == pytest.approx(1)


def test_zeros() -> None:
    pca = StreamingPCA(2, random_state=0).fit(np.zeros((30, 5)))
    assert (
        np.isfinite(pca.components_).all()
        and (pca.singular_values_ == 0).all()
        and pca.score(np.zeros((2, 5))) == 1
    )


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("pieces", [1, 7])
def test_shares_of_the_variance_are_those_of_the_decomposition(center: bool, pieces: int) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2100, 12)) * np.r_[5, 4, 3, np.full(9, 0.2)] + 2.0
    pca = StreamingPCA(3, center=center, n_samples=len(X), n_blocks=3, random_state=0)
    for part in np.array_split(X, pieces):
        pca.partial_fit(part)
    kept = X - X.mean(0) if center else X
    values = np.linalg.svd(kept, compute_uv=False) ** 2
    np.testing.assert_allclose(pca.explained_variance_ratio_, (values / values.sum())[:3], rtol=0.1)
    whole = StreamingPCA(3, center=center, n_blocks=3, random_state=0).fit(X)
    np.testing.assert_allclose(whole.explained_variance_ratio_, (values / values.sum())[:3], rtol=0.1)
    everything = StreamingPCA(12, center=center, n_blocks=3, random_state=0).fit(X)
    assert everything.explained_variance_ratio_.sum() == pytest.approx(1, rel=1e-9)


def test_half_a_stream_has_the_shares_of_its_rows() -> None:
    X = light_rows(400, 6, 30.0)
    pca = StreamingPCA(1, n_samples=400, n_blocks=4, random_state=0).partial_fit(X[:200])
    values = np.linalg.svd(X[:200], compute_uv=False) ** 2
    assert pca.explained_variance_ratio_[0] == pytest.approx(values[0] / values.sum(), rel=0.1)


def test_a_fraction_takes_as_many_components_as_hold_it() -> None:
    X = np.random.default_rng(0).normal(size=(3000, 10)) * np.r_[4, 3, 2, np.full(7, 0.1)]
    share = np.cumsum(np.linalg.svd(X, compute_uv=False) ** 2) / np.square(X).sum()
    for fraction, k in ((0.3, 1), (0.8, 2), (0.99, 3)):
        assert share[k - 1] > fraction and (k == 1 or share[k - 2] < fraction)
        pca = StreamingPCA(fraction, random_state=0).fit(X)
        assert pca.n_components_ == k and pca.transform(X).shape == (3000, k)
        assert list(pca.get_feature_names_out()) == [f"streamingpca{i}" for i in range(k)]
    with pytest.raises(ValueError, match=r"n_components is 0\.5: method='oja' needs a whole number"):
        StreamingPCA(0.5, method="oja").fit(X)


def test_a_share_that_the_components_do_not_hold_is_reported() -> None:
    X = np.random.default_rng(0).normal(size=(900, 200))
    with pytest.warns(ConvergenceWarning, match=r"132 components hold 0\.\d+, n_components=0\.99 asks more"):
        StreamingPCA(0.99, random_state=0, n_blocks=2).fit(X)


def test_whitened_columns_have_unit_variance_and_go_back() -> None:
    X = light_rows(3000, 6, 25.0) * 3 + 1
    plain, white = (
        StreamingPCA(2, center=True, whiten=w, n_blocks=3, random_state=0).fit(X) for w in (False, True)
    )
    Z = white.transform(X)
    np.testing.assert_allclose(Z * np.sqrt(white.explained_variance_), plain.transform(X), rtol=1e-9)
    assert Z[:, 0].std() == pytest.approx(1, rel=0.05)
    np.testing.assert_allclose(
        white.inverse_transform(Z), plain.inverse_transform(plain.transform(X)), rtol=1e-9
    )
    assert white.score(X) == pytest.approx(plain.score(X), rel=1e-12)


def test_all_components_give_the_rows_back() -> None:
    X = light_rows(300, 5, 4.0) + np.r_[3, -1, 0, 2, 5]
    for options in ({"center": True}, {}, {"center": True, "whiten": True}):
        pca = StreamingPCA(5, random_state=0, **options).fit(X)
        np.testing.assert_allclose(pca.inverse_transform(pca.transform(X)), X, atol=1e-9)
