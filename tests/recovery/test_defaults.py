"""What estimators do when nothing is said: their options, and the constants that follow the data."""

from __future__ import annotations

import inspect
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from problems import gaussian, low_rank, masked, psd

from eckart.recovery import (
    HiddenEntries,
    MatrixCompletion,
    MatrixSensingGD,
    RobustLowRank,
    StreamingPCA,
    _fit,
)
from eckart.recovery._base import RecoveryEstimator
from eckart.recovery._biases import fit_biases
from eckart.recovery._forms import read

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
OPTIONS: dict[type[RecoveryEstimator], dict[str, object]] = {
    MatrixCompletion: {
        "n_components": 20,
        "solver": "auto",
        "cg_steps": 3,
        "sketch_factor": 4,
        "reg": "auto",
        "reg_scaling": "none",
        "fit_bias": "auto",
        "implicit": False,
        "alpha": 1.0,
        "init": "spectral",
        "incoherence": None,
        "sample_reuse": True,
        "orthonormal": "auto",
        "all_observed": False,
        "max_iter": 15,
        "tol": 1e-4,
        "clip": None,
        "n_jobs": None,
    },
    RobustLowRank: {
        "rank": None,
        "loss": "l1",
        "step": "normalized_geometric",
        "eta0": 0.3,
        "decay": 0.98,
        "alpha": 1e-5,
        "init": "spectral",
        "symmetric": "auto",
        "max_iter": 600,
        "tol": 3e-6,
        "quantile": 0.5,
        "norm": "spectral",
        "delta": 0.1,
        "scale": "auto",
        "validation_fraction": "auto",
        "patience": 100,
    },
    StreamingPCA: {
        "n_components": 1,
        "method": "block",
        "n_samples": None,
        "n_blocks": "auto",
        "oversample": 4,
        "heavy_factor": 1.0,
        "heavy_threshold": None,
        "max_heavy": 256,
        "eta": None,
        "growth_constant": 1.0,
        "center": False,
        "whiten": False,
        "shuffle_buffer": 0,
        "init": None,
    },
    MatrixSensingGD: {
        "n_components": 1,
        "parametrization": "asymmetric",
        "alpha": 0.05,
        "g_scale": 1 / 3,
        "rebalance": "once",
        "beta": "auto",
        "switch_tol": 1e-3,
        "switch_iter": None,
        "eta": "auto",
        "momentum": 0.0,
        "init": None,
        "max_iter": 5000,
        "tol": 1e-7,
    },
}


@pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: kind.__name__)
def test_options_left_out_are_those_of_the_page(kind: type[RecoveryEstimator]) -> None:
    everywhere = {"random_state": None, "dtype": None, "device": None, "verbose": False, "callback": None}
    assert kind().get_params() == OPTIONS[kind] | everywhere


def test_questions_left_out() -> None:
    """Ten recommendations, ten similar items, scores at ten."""
    for name in ("recommend", "similar_items", "ranking_scores"):
        assert inspect.signature(getattr(MatrixCompletion, name)).parameters["k"].default == 10
    assert HiddenEntries() == HiddenEntries(share=0.2, metric="rmse", random_state=0)


def test_the_ridge_is_on_a_path_of_halvings_from_64_root_mean_squares() -> None:
    rng = np.random.default_rng(0)
    X = masked(10 * low_rank(30, 24, 2) + rng.normal(0, 0.5, (30, 24)), 0.7)
    seen = X[~np.isnan(X)]
    plain = MatrixCompletion(2, fit_bias=False, random_state=0).fit(X)
    halvings = math.log2(64 * math.sqrt((seen**2).mean()) / plain.reg_)
    assert 1 <= round(halvings) < 20 and halvings == pytest.approx(round(halvings), abs=1e-9)
    larger = MatrixCompletion(2, fit_bias=False, random_state=0).fit(4096 * X)
    assert larger.reg_ == pytest.approx(4096 * plain.reg_, rel=1e-9)
    weighted = MatrixCompletion(2, fit_bias=False, random_state=0).fit(
        X, sample_weight=np.where(np.isnan(X), np.nan, 7.0)
    )
    assert weighted.reg_ == pytest.approx(7 * plain.reg_, rel=1e-9)


def test_where_nothing_can_be_held_out_the_ridge_is_the_highest() -> None:
    one = MatrixCompletion(1, fit_bias=False, random_state=0).fit(([0], [0], [3.0]), shape=(1, 1))
    assert one.reg_ == pytest.approx(64 * 3)


@pytest.mark.parametrize("reg_scaling", ["none", "count"])
def test_many_steps_of_cg_find_the_biases_that_cholesky_finds(reg_scaling: str) -> None:
    """Also in the first half-step, which starts from the damped means."""
    rng = np.random.default_rng(1)
    X = masked(3 + rng.normal(0, 1, (12, 1)) + rng.normal(0, 1, 17) + low_rank(12, 17, 2), 0.8)
    options = {"reg": 0.4, "reg_scaling": reg_scaling, "max_iter": 2, "tol": 0.0, "random_state": 0}
    exact, steps = (
        MatrixCompletion(2, solver=solver, cg_steps=40, **options).fit(X) for solver in ("cholesky", "cg")
    )
    for name in ("row_bias_", "col_bias_", "row_factors_", "components_"):
        np.testing.assert_allclose(getattr(steps, name), getattr(exact, name), atol=1e-8)
    ridge = {"none": 3.0, "count": 0.03 * (~np.isnan(X)).sum(1)}[reg_scaling]
    rest = np.where(
        np.isnan(X), 0, X - exact.mean_ - exact.col_bias_ - exact.row_factors_ @ exact.components_
    )
    np.testing.assert_allclose(exact.row_bias_, rest.sum(1) / ((~np.isnan(X)).sum(1) + ridge), atol=1e-8)


def test_damped_means_have_ten_zeros_beside_a_column_and_fifteen_beside_a_row() -> None:
    """The biases of a fit without a ridge, which stay as they are."""
    rng = np.random.default_rng(2)
    X = masked(2 + rng.normal(0, 1, (25, 1)) + rng.normal(0, 1, 18), 0.7)
    model = MatrixCompletion(1, reg=0.0, fit_bias=True, max_iter=1, random_state=0).fit(X)
    there = ~np.isnan(X)
    mean, rows, cols = np.nanmean(X), np.zeros(25), np.zeros(18)
    for _ in range(10):
        cols = np.where(there, X - mean - rows[:, None], 0).sum(0) / (there.sum(0) + 10)
        rows = np.where(there, X - mean - cols, 0).sum(1) / (there.sum(1) + 15)
    assert model.mean_ == pytest.approx(mean)
    np.testing.assert_allclose(model.row_bias_, rows, atol=1e-12)
    np.testing.assert_allclose(model.col_bias_, cols, atol=1e-12)


def test_clicks_start_from_their_weighted_matrix() -> None:
    """The spectral start is that of r̃ c, c = α r, r̃ = 1 + 1/c: of 1 + α r where there is a click."""
    R = np.random.default_rng(3).poisson(0.6, (14, 11)).astype(float)
    seen = np.where(R > 0, 1 + 2.5 * R, 0)
    u, s, _ = np.linalg.svd(seen / (R > 0).mean())
    options = {"implicit": True, "alpha": 2.5, "max_iter": 1, "tol": 0.0}
    one = MatrixCompletion(2, **options).fit(sp.csr_array(R))
    two = MatrixCompletion(2, init=u[:, :2] * np.sqrt(s[:2]), **options).fit(sp.csr_array(R))
    np.testing.assert_allclose(
        one.row_factors_ @ one.components_, two.row_factors_ @ two.components_, atol=1e-8
    )
    extra = 2.5 * R[R > 0]
    assert one.reg_ == pytest.approx(8 * extra.mean())


def test_triplets_of_new_rows_need_not_reach_the_last_column() -> None:
    X = masked(low_rank(20, 9, 2), 0.8)
    model = MatrixCompletion(2, reg=0.1, random_state=0).fit(X)
    dense = np.full((2, 9), np.nan)
    dense[0, 3], dense[1, 0] = 1.5, -0.5
    np.testing.assert_allclose(model.transform(([0, 1], [3, 0], [1.5, -0.5])), model.transform(dense))


def test_the_first_column_can_be_recommended() -> None:
    X = np.full((6, 4), 1.0)
    X[:, 0] = 5.0
    X[0, 0] = np.nan
    model = MatrixCompletion(1, reg=0.1, random_state=0).fit(X)
    items, scores = model.recommend([0], k=4)
    assert items[0, 0] == 0 and scores[0, 0] > 3 and np.isfinite(scores).all()
    items, scores = model.recommend([0], k=4, exclude=X)
    assert items[0].tolist() == [0, -1, -1, -1] and np.isneginf(scores[0, 1:]).all()


def test_a_random_start_is_alpha_times_columns_of_about_unit_length() -> None:
    A, y = gaussian(psd(40, 1), 60)
    starts: list[torch.Tensor] = []
    RobustLowRank(
        8,
        init="random",
        alpha=1e-3,
        scale=1.0,
        symmetric=True,
        max_iter=1,
        random_state=0,
        validation_fraction=0,
        callback=lambda t, state: starts.append(state["factor"]) if t == 0 else None,
    ).fit(A, y)
    size = float(torch.as_tensor(starts[0]).square().sum(0).mean().sqrt())
    assert 0.7e-3 < size < 1.4e-3


def test_the_first_block_of_a_centred_stream_has_no_say_in_its_drift() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(800, 6)) * np.linspace(4, 1, 800)[:, None] + 3
    pca = StreamingPCA(1, n_samples=800, n_blocks=6, center=True, heavy_threshold=np.inf, random_state=0)
    for part in np.array_split(rows, 20):
        pca.partial_fit(part)
    ends = np.append(pca.block_starts_[1:], 800)
    tops = (pca.block_rayleigh_.max(1))[1 : len(ends)]
    late = tops[len(tops) // 2 :]
    assert pca._drift() == pytest.approx(tops.max() / late.min()) and tops.argmax() == 0


def test_names_that_are_all_unknown_have_no_score() -> None:
    rng = np.random.default_rng(0)
    clicks = pd.DataFrame({"user": rng.integers(0, 9, 60), "item": rng.integers(0, 7, 60)}).drop_duplicates()
    model = MatrixCompletion(2, implicit=True, random_state=0).fit(clicks)
    scores = model.ranking_scores(clicks.assign(user=100 + clicks.user), k=3)
    assert scores.pop("users") == 0 and all(math.isnan(score) for score in scores.values())


def test_a_share_that_is_just_held_is_not_complained_of() -> None:
    X = np.tile(2.0 * np.eye(2), (8, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pca = StreamingPCA(0.5, init=np.eye(2), n_blocks=1).fit(X)
    assert pca.n_components_ == 1 and pca.explained_variance_ratio_.tolist() == [0.5]


def test_an_outlier_is_beyond_five_deviations_by_the_median() -> None:
    """Dense noise, and errors of 2 to 12 of its deviations."""
    rng = np.random.default_rng(0)
    A, y = gaussian(psd(8, 1), 500)
    y = y + 0.05 * rng.normal(size=500)
    y[:40] += 0.05 * np.linspace(2, 12, 40)
    model = RobustLowRank(1, random_state=0, validation_fraction=0).fit(A, y)
    rest = np.abs(y - np.einsum("mij,ij->m", A, model.matrix_))
    deviation = np.median(rest) / 0.6744897501960817
    assert ((rest > 5.5 * deviation) & (rest < 9.5 * deviation)).sum() > 5
    np.testing.assert_array_equal(model.outlier_mask_, rest > 5 * deviation)


@pytest.mark.parametrize(
    ("errors", "best", "tried"),
    [
        ([5, 4, 3, 4, 5, 1], 2, 5),  # the second rise in a row ends it
        ([5, 6, 4, 5, 3, 4, 5, 1], 4, 7),  # one rise does not
        ([5, 4, 4, 5, 4, 5, 1], 1, 6),  # what is equal is neither
        ([30 - i for i in range(20)], 19, 20),
        ([30 - i for i in range(19)] + [12], 18, 20),
        ([30 - i for i in range(19)] + [0.00099], None, 20),  # noise-free: no ridge
        ([30 - i for i in range(19)] + [0.00101], 19, 20),
        ([30 - i for i in range(18)] + [0.0005, 0.0006], 18, 20),  # no longer falling
    ],
)
def test_which_ridges_are_tried_and_which_is_taken(errors, best, tried: int, monkeypatch) -> None:
    """Errors on what is held out, in root mean squares of the data, as they come."""
    data, _ = read(masked(7 * low_rank(30, 24, 2), 0.7))
    size = float(np.sqrt(np.square(data.values).mean()))
    runs: list[tuple[float, int]] = []

    class Scripted:
        solver = "cg"

        def run(self, reg: float, sweeps: int, *, after: object = None) -> int:
            assert self.solver == "cholesky" and after == (len(runs) or None)
            runs.append((reg, sweeps))
            return len(runs)

        def alive(self, found: int) -> bool:
            return True

    monkeypatch.setattr(_fit, "Alternation", lambda *_: Scripted())
    monkeypatch.setattr(_fit, "_error", lambda found, test: size * errors[found - 1])
    options = MatrixCompletion(2, fit_bias=False)
    found = _fit.choose_reg(
        options, data, fit_biases(data, False), np.random.RandomState(0), torch.zeros(0, dtype=torch.float64)
    )
    np.testing.assert_allclose([reg for reg, _ in runs], 64 * size / 2.0 ** np.arange(tried))
    assert {sweeps for _, sweeps in runs} == {2}
    assert found == pytest.approx(0 if best is None else 64 * size / 2**best)


@pytest.mark.parametrize(("ratio", "told"), [(2.9, False), (3.1, True)])
def test_blocks_that_differ_more_than_threefold_are_not_in_random_order(ratio: float, told: bool) -> None:
    rows = np.sqrt(np.repeat([ratio, ratio, 1.0, 1.0], 10))[:, None]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pca = StreamingPCA(n_blocks=4, heavy_threshold=np.inf).fit(rows)
    assert pca._drift() == pytest.approx(ratio)
    assert any("not in random order" in str(w.message) for w in caught) == told
