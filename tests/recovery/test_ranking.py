"""Implicit feedback against its equation, ranking scores against theirs, similar items, and hidden entries."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from problems import low_rank, masked
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

from eckart.recovery import HiddenEntries, MatrixCompletion, RobustLowRank, ranking_scores

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
M, N, K = 30, 22, 3


def counts(seed: int = 0) -> np.ndarray:
    """Clicks of two kinds of users on two kinds of items."""
    rng = np.random.default_rng(seed)
    taste = np.where((np.arange(M)[:, None] % 2) == (np.arange(N) % 2), 0.5, 0.05)
    return rng.poisson(taste).astype(float) * rng.integers(1, 4, (M, N))


def reference(
    R: np.ndarray, U: np.ndarray, alpha: float, reg: float, sweeps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hu, Koren & Volinsky's alternation, every entry written out."""
    C, P = 1 + alpha * R, (R > 0).astype(float)
    for _ in range(sweeps):
        V = np.stack(
            [np.linalg.solve(U.T * C[:, j] @ U + reg * np.eye(K), U.T * C[:, j] @ P[:, j]) for j in range(N)]
        )
        U = np.stack([np.linalg.solve(V.T * C[i] @ V + reg * np.eye(K), V.T * C[i] @ P[i]) for i in range(M)])
    return U, V


@pytest.mark.parametrize("solver", ["cholesky", "cg", "sketch"])
@pytest.mark.parametrize(("alpha", "reg"), [(1.0, 0.5), (7.0, 2.0)])
def test_implicit_feedback_is_its_equation(solver: str, alpha: float, reg: float) -> None:
    R, start = counts(), np.random.default_rng(1).normal(size=(M, K))
    model = MatrixCompletion(
        K, implicit=True, alpha=alpha, reg=reg, init=start, solver=solver, cg_steps=25, max_iter=3, tol=0.0
    ).fit(sp.csr_array(R))
    U, V = reference(R, start, alpha, reg, 3)
    np.testing.assert_allclose(model.row_factors_, U, atol=1e-7)
    np.testing.assert_allclose(model.components_, V.T, atol=1e-7)
    C, P = 1 + alpha * R, R > 0
    loss = (C * (P - U @ V.T) ** 2).sum() / C.sum()
    assert model.train_rmse_ == pytest.approx(math.sqrt(loss), rel=1e-7)
    assert model.inner_residual_ < 1e-6 and model.mean_ == 0 and not model.row_bias_.any()
    np.testing.assert_allclose(model.transform(sp.csr_array(R)), U, atol=1e-7)


def test_forms_of_clicks() -> None:
    R = (counts() > 0).astype(float)
    rows, cols = R.nonzero()
    fits = [
        MatrixCompletion(K, implicit=True, random_state=0).fit(X)
        for X in (
            R,
            sp.coo_array(R),
            pd.DataFrame({"user": rows, "item": cols}),
            pd.DataFrame({"user": rows, "item": cols, "rating": np.ones(len(rows))}),
        )
    ]
    for fitted in fits[1:]:
        np.testing.assert_allclose(fitted.components_, fits[0].components_, atol=1e-10)
    twice = pd.DataFrame({"user": np.r_[rows, rows[:40]], "item": np.r_[cols, cols[:40]]})
    assert fits[0].reg_ == pytest.approx(8.0)
    more = MatrixCompletion(K, implicit=True, alpha=3.0, random_state=0).fit(R)
    assert more.reg_ == pytest.approx(24.0)
    with pytest.warns(UserWarning, match="40 entries are given more than once"):
        MatrixCompletion(K, implicit=True, random_state=0).fit(twice)
    updated = fits[2].partial_fit(pd.DataFrame({"user": [99], "item": [0]}))
    assert updated.row_ids_[-1] == 99 and updated.row_factors_[-1].any()


@pytest.mark.parametrize(
    ("options", "X", "message"),
    [
        ({"fit_bias": True}, counts(), "fit_bias=True with implicit=True"),
        ({}, counts() - 1, "implicit=True takes counts: X holds -1"),
        ({}, np.zeros((5, 5)), "holds none above zero"),
        ({"alpha": 0.0}, counts(), r"^alpha is .*: give "),
    ],
)
def test_bad_clicks(options, X, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatrixCompletion(K, implicit=True, **options).fit(X)


def test_scores_of_a_ranking_are_their_equations() -> None:
    recommended = [[3, 1, 0, 2], [0, 1, -1, -1], [4, 3, 2, 1]]
    relevant = np.array([[1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]])
    found = ranking_scores(recommended, relevant)
    log = [1 / math.log2(j + 1) for j in range(1, 5)]
    first = (log[2] + log[3]) / sum(log[:3])
    assert found["ndcg"] == pytest.approx((first + log[1]) / 2)
    assert found["recall"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["map"] == pytest.approx(((1 / 3 + 2 / 4) / 3 + 1 / 2) / 2)
    assert found["users"] == 2
    assert ranking_scores([[0]], [[1, 1, 1]]) == {
        "ndcg": 1.0,
        "recall": pytest.approx(1 / 3),
        "map": 1.0,
        "users": 1,
    }
    assert math.isnan(ranking_scores([[0]], [[0, 0]])["ndcg"])
    missing = ranking_scores([[-1, 1]], [[1, 0]])
    assert missing["ndcg"] == missing["recall"] == missing["map"] == 0.0
    for bad in ([[7, 0]], [[-2, 0]]):
        with pytest.raises(ValueError, match="outside"):
            ranking_scores(bad, [[1, 0]])
    with pytest.raises(ValueError, match="give \\(users, k\\) for the 2 of relevant"):
        ranking_scores([[0]], [[1], [1]])


def test_ranking_a_held_out_half_leaves_out_what_was_seen() -> None:
    R = counts(3)
    held = np.random.default_rng(0).random(R.shape) < 0.5
    seen, rest = sp.csr_array(R * ~held), sp.csr_array(R * held)
    model = MatrixCompletion(2, implicit=True, random_state=0).fit(seen)
    found = model.ranking_scores(rest, k=5)
    scores = model.row_factors_ @ model.components_
    scores[seen.toarray() > 0] = -np.inf
    assert found == ranking_scores(np.argsort(-scores, axis=1)[:, :5], rest)
    assert model.score(rest) == model.ranking_scores(rest, k=10)["ndcg"]
    popular = np.where(seen.toarray() > 0, -1, (seen > 0).sum(0))
    assert found["ndcg"] > ranking_scores(np.argsort(-popular, axis=1)[:, :5], rest)["ndcg"]


def test_ranking_of_named_clicks() -> None:
    rows, cols = (counts() > 0).nonzero()
    frame = pd.DataFrame({"user": [f"u{r:02}" for r in rows], "item": [f"i{c:02}" for c in cols]})
    held = np.random.default_rng(0).random(len(frame)) < 0.3
    model = MatrixCompletion(2, implicit=True, random_state=0).fit(frame[~held])
    unknown = pd.concat([frame[held], pd.DataFrame({"user": ["nobody"], "item": ["i00"]})])
    assert model.ranking_scores(unknown, k=3) == model.ranking_scores(frame[held], k=3)
    assert 0 < model.score(frame[held]) <= 1


def test_similar_items_are_those_of_the_largest_cosine() -> None:
    R = counts()
    model = MatrixCompletion(2, implicit=True, random_state=0).fit(R)
    V = model.components_.T / np.linalg.norm(model.components_.T, axis=1, keepdims=True)
    cosine = V @ V.T
    np.fill_diagonal(cosine, -np.inf)
    items, found = model.similar_items([3, 8], k=4)
    for row, item in enumerate((3, 8)):
        order = np.argsort(-cosine[item])[:4]
        np.testing.assert_array_equal(items[row], order)
        np.testing.assert_allclose(found[row], cosine[item, order], atol=1e-10)
        assert (items[row] % 2 == item % 2).all()
    rows, cols = R.nonzero()
    named = MatrixCompletion(2, implicit=True).fit(
        pd.DataFrame({"user": rows, "item": [f"i{c:02}" for c in cols]})
    )
    names, _ = named.similar_items(["i03"], k=N - 1)
    assert "i03" not in names[0] and len(set(names[0])) == N - 1
    for items, k, message in (
        (["x"], 1, "holds 1 unknown names"),
        (["i03"], N, "from 1 to 21"),
        (["i03"], 0, "k is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            named.similar_items(items, k=k)
    with pytest.raises(NotFittedError):
        MatrixCompletion().similar_items([0])


def test_hidden_entries_are_scored_on_rows_folded_in_without_them() -> None:
    truth = low_rank(60, 20, 2)
    X = masked(truth, 0.7)
    model = MatrixCompletion(2, reg=0.0, fit_bias=False, max_iter=60).fit(X[:40])
    assert HiddenEntries(0.1)(model, X[40:]) > -1e-6
    worse = MatrixCompletion(1, reg=0.0, fit_bias=False).fit(X[:40])
    assert HiddenEntries(0.1)(worse, X[40:]) < -0.01
    wrong = X.copy()
    wrong[40:][~np.isnan(X[40:])] += np.random.default_rng(0).normal(size=(~np.isnan(X[40:])).sum())
    assert HiddenEntries(0.1)(model, wrong[40:]) < -0.5
    rows, cols = np.nonzero(~np.isnan(X[40:]))
    hidden = np.random.default_rng(3).permutation(len(rows)) < round(0.25 * len(rows))
    shown = X[40:].copy()
    shown[rows[hidden], cols[hidden]] = np.nan
    error = (worse.impute(shown) - X[40:])[rows[hidden], cols[hidden]]
    assert HiddenEntries(0.25, random_state=3)(worse, X[40:]) == pytest.approx(-math.sqrt((error**2).mean()))
    assert HiddenEntries(0.25, "mae", 3)(worse, X[40:]) == pytest.approx(-np.abs(error).mean())


def test_a_grid_search_finds_the_rank() -> None:
    X = masked(low_rank(45, 16, 3) + 0.005 * np.random.default_rng(0).normal(size=(45, 16)), 0.8)
    for estimator, knob, options in (
        (MatrixCompletion(reg=0.01, fit_bias=False, max_iter=40), "n_components", {}),
        (RobustLowRank(max_iter=200), "rank", {}),
    ):
        grid = GridSearchCV(
            estimator.set_params(**options), {knob: [1, 3]}, scoring=HiddenEntries(), cv=2
        ).fit(X)
        assert grid.best_params_ == {knob: 3}
        framed = GridSearchCV(estimator, {knob: [3]}, scoring=HiddenEntries(), cv=2).fit(
            pd.DataFrame(X, columns=[f"c{j}" for j in range(16)])
        )
        assert framed.best_score_ == pytest.approx(grid.best_score_, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HiddenEntries(0.0), "share is 0.0"),
        (lambda: HiddenEntries(metric="r2"), "metric is 'r2'"),
        (lambda: HiddenEntries()(None, np.array([[1.0, np.nan]])), "too few to hide"),
        (
            lambda: HiddenEntries()(None, pd.DataFrame({"user": [1], "item": [2], "rating": [3.0]})),
            "a frame of ratings: leave scoring out",
        ),
    ],
)
def test_what_cannot_be_hidden(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
