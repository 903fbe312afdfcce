"""What all four estimators owe: scikit-learn's contract, files, and nothing half-fitted."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from problems import gaussian, light_rows, low_rank, masked, psd
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator

from eckart.recovery import METHODS, MatrixCompletion, MatrixSensingGD, RobustLowRank, StreamingPCA

A, Y = gaussian(psd(6, 1), 120)
FITS = {
    "RobustLowRank": (RobustLowRank(2, eta0=0.2, max_iter=60), (A, Y)),
    "MatrixSensingGD": (MatrixSensingGD(2, random_state=0), (A, Y)),
    "StreamingPCA": (StreamingPCA(2, random_state=0), (light_rows(200, 8, 9.0),)),
    "MatrixCompletion": (
        MatrixCompletion(2, reg=0.1, max_iter=50, random_state=0),
        (masked(low_rank(20, 15, 2), 0.6),),
    ),
}
each = pytest.mark.parametrize("name", FITS)
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


class FactorsOnly(MatrixCompletion):
    """Without `predict` and `score`, which are about pairs of indices and not about rows."""

    predict = score = property()


PAIRS = "predict and score are about pairs of a row and a column, as ratings need, and not about rows of X"
OF_PAIRS = (
    "check_n_features_in_after_fitting",
    "check_estimators_dtypes",
    "check_dtype_object",
    "check_estimator_sparse_array",
    "check_estimator_sparse_matrix",
    "check_estimators_pickle",
    "check_f_contiguous_array_estimator",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_dict_unchanged",
    "check_fit_idempotent",
    "check_fit2d_predict1d",
)
SHAPES = "sample_weight may be one number for each entry, in the shape of X"
REPEATS = "a repeated row is another row, with a ridge and a damped bias of its own; a weight leaves it one"
OF_ROWS = {
    "check_sample_weights_shape": SHAPES,
    "check_sample_weight_equivalence_on_dense_data": REPEATS,
    "check_sample_weight_equivalence_on_sparse_data": REPEATS,
}


DRAWN = "what is held out to find the rank is drawn from the rows"
TABLES = "NaN is a missing entry of a table, which comes without y; measurements have none"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("estimator", "failing"),
    [
        (RobustLowRank(1, max_iter=2), {"check_estimators_pickle": TABLES}),
        (
            RobustLowRank(max_iter=2),
            {
                "check_estimators_pickle": TABLES,
                "check_sample_weight_equivalence_on_dense_data": DRAWN,
                "check_sample_weight_equivalence_on_sparse_data": DRAWN,
            },
        ),
        (MatrixSensingGD(max_iter=100), {}),
        (StreamingPCA(), {}),
        (FactorsOnly(1, all_observed=True, reg=1.0), OF_ROWS),
        (MatrixCompletion(1, all_observed=True, reg=1.0), OF_ROWS | dict.fromkeys(OF_PAIRS, PAIRS)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_check_estimator(estimator, failing) -> None:
    results = check_estimator(estimator, on_fail=None, expected_failed_checks=failing)
    by_status = {r["check_name"]: r["status"] for r in results if r["status"] not in ("passed", "skipped")}
    assert by_status == dict.fromkeys(failing, "xfail"), [
        r["exception"] for r in results if r["status"] == "failed"
    ]


@each
def test_a_fit_repeated_gives_the_same_numbers(name: str) -> None:
    estimator, data = FITS[name]
    once, again = clone(estimator).fit(*data), clone(estimator).fit(*data)
    for attribute in ("components_", "matrix_"):
        if hasattr(once, attribute):
            np.testing.assert_array_equal(getattr(once, attribute), getattr(again, attribute))


@each
def test_saved_and_loaded_is_the_same(name: str, tmp_path: Path) -> None:
    estimator, data = FITS[name]
    fitted = clone(estimator).fit(*data)
    fitted.save(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["arrays.safetensors", "estimator.json"]
    loaded = type(estimator).load(tmp_path / "model")
    assert loaded.get_params() == fitted.get_params()
    if name == "MatrixCompletion":
        np.testing.assert_array_equal(loaded.transform(*data), fitted.transform(*data))
        new_row = np.full((1, 15), np.nan)
        new_row[0, :4] = 1.0
        for model in (loaded, fitted):
            model.partial_fit(new_row, rows=[20])
        np.testing.assert_array_equal(loaded.components_, fitted.components_)
    elif name == "StreamingPCA":
        np.testing.assert_array_equal(loaded.transform(*data), fitted.transform(*data))
        assert loaded.n_samples_seen_ == fitted.n_samples_seen_
    else:
        np.testing.assert_array_equal(loaded.predict(A), fitted.predict(A))


@each
def test_files_are_refused_when_they_do_not_fit(name: str, tmp_path: Path) -> None:
    estimator, data = FITS[name]
    clone(estimator).fit(*data).save(tmp_path / "model")
    other = RobustLowRank if name != "RobustLowRank" else StreamingPCA
    with pytest.raises(ValueError, match=f"holds a {name}: read it with {name}.load"):
        other.load(tmp_path / "model")
    with pytest.raises(ValueError, match="is not empty"):
        estimator.save(tmp_path / "model")
    with pytest.raises(ValueError, match="holds no saved estimator"):
        type(estimator).load(tmp_path / "nothing")
    tree = json.loads((tmp_path / "model" / "estimator.json").read_text())
    tree["format"] = 99
    (tmp_path / "model" / "estimator.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="has format 99"):
        type(estimator).load(tmp_path / "model")


@each
def test_float32_stays_float32_and_dtype_overrides(name: str) -> None:
    estimator, data = FITS[name]
    short = [part.astype(np.float32) for part in data]

    def precision(fitted):
        return (fitted.components_ if hasattr(fitted, "components_") else fitted.matrix_).dtype

    assert precision(clone(estimator).fit(*short)) == np.float32
    assert precision(clone(estimator).fit(*data)) == np.float64
    assert precision(clone(estimator).set_params(dtype="float32").fit(*data)) == np.float32


def use(model):
    """What is asked of new data: of measurements their predictions, else factors of rows."""
    return model.predict if len(FITS[type(model).__name__][1]) == 2 else model.transform


LAYOUTS = {
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "backwards": lambda a: a[::-1].copy()[::-1],
    "by columns": np.asfortranarray,
    "other bytes": lambda a: a.astype(a.dtype.newbyteorder()),
    "every second": lambda a: np.repeat(a, 2, -1)[..., ::2],
}


@each
@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_an_array_lies_in_memory_is_no_matter(name: str, layout: str) -> None:
    """Nor does PyTorch complain of arrays that it may not write to, such as those of a joblib worker."""
    estimator, data = FITS[name]
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*not writable")
            found = clone(estimator).fit(*(LAYOUTS[layout](part) for part in data))
            answer = use(found)(LAYOUTS[layout](data[0]))
    finally:
        torch.set_warn_always(False)
    wanted = clone(estimator).fit(*data)
    for attribute in ("components_", "matrix_", "left_"):
        if hasattr(wanted, attribute):
            np.testing.assert_allclose(getattr(found, attribute), getattr(wanted, attribute), atol=1e-9)
    np.testing.assert_allclose(answer, use(wanted)(data[0]), atol=1e-9)


@each
@pytest.mark.parametrize("dtype", ["float16", "int16", "bool", "object"])
def test_numbers_of_other_types_are_the_same_numbers(name: str, dtype: str) -> None:
    estimator, data = FITS[name]
    random = np.random.default_rng(0)
    shape = (60, 6, 6) if len(data) == 2 else (60, 8)
    A = random.integers(0, 2, shape).astype(dtype)
    given = [A, random.integers(0, 2, 60).astype(dtype)] if len(data) == 2 else [A]
    options = (
        {"all_observed": True} if name == "MatrixCompletion" else {"max_iter": 20} if len(given) == 2 else {}
    )
    model = clone(estimator).set_params(**options)
    found, wanted = (clone(model).fit(*rows) for rows in (given, [part.astype(float) for part in given]))
    attribute = "components_" if len(data) == 1 else "matrix_"
    np.testing.assert_array_equal(getattr(found, attribute), getattr(wanted, attribute))
    assert getattr(found, attribute).dtype == np.float64


def test_what_is_kept_of_triplets_is_a_copy() -> None:
    rows, cols = np.nonzero(np.ones((6, 5)))
    values = np.random.default_rng(0).normal(size=30)
    model = MatrixCompletion(2, reg=0.1, random_state=0).fit((rows, cols, values))
    values += 100
    again = MatrixCompletion(2, reg=0.1, random_state=0).fit((rows, cols, values - 100))
    for fitted in (model, again):
        fitted.partial_fit(np.full((1, 5), 0.5), rows=[6])
    np.testing.assert_allclose(model.components_, again.components_, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr"])
def test_sparse_tensors_of_any_layout_and_type_are_tables(layout: str) -> None:
    dense = np.where(np.random.default_rng(0).random((12, 10)) < 0.6, low_rank(12, 10, 1), 0)
    wanted = MatrixCompletion(1, reg=0.1, random_state=0).fit(sp.csr_array(dense))
    tensor = torch.as_tensor(dense).to_sparse_coo()
    if layout == "bsr":
        tensor = torch.as_tensor(dense).to_sparse_bsr((2, 2))
        wanted = MatrixCompletion(1, reg=0.1, random_state=0).fit(sp.csr_array(dense).tobsr((2, 2)))
    elif layout != "coo":
        tensor = getattr(tensor, f"to_sparse_{layout}")()
    found = MatrixCompletion(1, reg=0.1, random_state=0).fit(tensor)
    np.testing.assert_allclose(found.components_, wanted.components_, atol=1e-12)
    short = MatrixCompletion(1, reg=0.1, random_state=0).fit(torch.as_tensor(masked(dense, 0.9)).bfloat16())
    assert short.components_.dtype == np.float64


@each
def test_before_fit(name: str) -> None:
    estimator, data = FITS[name]
    use = clone(estimator).transform if hasattr(estimator, "transform") else clone(estimator).predict
    with pytest.raises(NotFittedError, match="not fitted yet"):
        use(data[0])


@pytest.mark.parametrize(
    ("name", "bad"),
    [(name, bad) for name in FITS for bad in (np.nan, np.inf) if name != "MatrixCompletion" or bad == np.inf],
)
def test_a_failed_fit_leaves_the_estimator_as_it_was(name: str, bad: float) -> None:
    estimator, data = FITS[name]
    broken = [data[0].copy(), *data[1:]]
    broken[0][np.isfinite(broken[0])] = bad
    fresh = clone(estimator)
    with pytest.raises(ValueError, match=r"NaN|infinity|inf"):
        fresh.fit(*broken)
    assert not [
        attribute for attribute in vars(fresh) if attribute in ("factor_", "left_", "_state", "row_factors_")
    ]
    fitted = clone(estimator).fit(*data)
    before = dict(vars(fitted))
    with pytest.raises(ValueError, match=r"NaN|infinity|inf"):
        fitted.fit(*broken)
    with pytest.raises(ValueError, match="at most"):
        fitted.set_params(**{next(iter(fitted.get_params().keys() & {"rank", "n_components"})): 99}).fit(
            *data
        )
    assert {name: id(value) for name, value in vars(fitted).items() if name.endswith("_")} == {
        name: id(value) for name, value in before.items() if name.endswith("_")
    }


@each
def test_parameters_are_refused_in_the_words_of_scikit_learn(name: str) -> None:
    estimator, data = FITS[name]
    for wrong in ({"dtype": "float16"}, {"verbose": -1}):
        with pytest.raises(ValueError, match=rf"^{next(iter(wrong))} is .*: give "):
            clone(estimator).set_params(**wrong).fit(*data)
    absent = "cuda" if not torch.cuda.is_available() else "cuda:99"
    for device in ("nowhere", absent):
        with pytest.raises(ValueError, match=f"device is '{device}'"):
            clone(estimator).set_params(device=device).fit(*data)


@each
def test_verbose_prints_and_callback_is_called(name: str, capsys) -> None:
    estimator, data = FITS[name]
    seen = []
    clone(estimator).set_params(verbose=True, callback=lambda t, info: seen.append(t)).fit(*data)
    assert capsys.readouterr().out.startswith(f"[{name}] iteration 0: ")
    assert seen == list(range(len(seen))) and seen


def test_sparse_vectors_are_measurements_too() -> None:
    rows = sp.random_array((80, 6), density=0.5, random_state=np.random.default_rng(0)).tocsr()
    y = np.einsum("mi,ij,mj->m", rows.toarray(), psd(6, 1), rows.toarray())
    short, long = rows.copy(), rows.copy()
    short.indices, short.indptr = rows.indices.astype(np.int32), rows.indptr.astype(np.int32)
    long.indices, long.indptr = rows.indices.astype(np.int64), rows.indptr.astype(np.int64)
    dense, *sparse = (
        MatrixSensingGD(2, random_state=0, max_iter=300).fit(a, y) for a in (rows.toarray(), short, long)
    )
    for fitted in sparse:
        np.testing.assert_allclose(fitted.matrix_, dense.matrix_, atol=1e-9)


def test_methods_are_listed_without_scikit_learn_and_one_line_says_to_install_it() -> None:
    for row in METHODS:
        assert row["family"] == "recovery" and all(row.values())
    code = (
        "import sys, eckart.recovery as r\n"
        "assert len(r.METHODS) == 4 and 'sklearn' not in sys.modules\n"
        "sys.modules['sklearn'] = None\n"
        "try: r.StreamingPCA\n"
        "except ValueError as error: assert \"pip install 'eckart[recovery]'\" in str(error)\n"
        "else: raise SystemExit('not refused')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_frame_with_a_column_for_each_feature_keeps_its_names() -> None:
    X = pd.DataFrame(
        masked(low_rank(20, 4, 2), 0.7), columns=list("dbca"), index=[f"r{i}" for i in range(20)]
    )
    model = MatrixCompletion(2, reg=0.1, random_state=0).fit(X)
    assert list(model.feature_names_in_) == list("dbca")
    turned = X[list("abcd")]
    np.testing.assert_array_equal(model.transform(turned), model.transform(X))
    filled = model.impute(turned)
    assert isinstance(filled, pd.DataFrame) and list(filled.columns) == list("abcd")
    assert list(filled.index) == list(X.index)
    pd.testing.assert_frame_equal(filled[list("dbca")], model.impute(X))
    np.testing.assert_array_equal(filled["c"][X["c"].notna()], X["c"].dropna())
    assert isinstance(model.impute(X.to_numpy()), np.ndarray)
    with pytest.raises(ValueError, match="X lacks b and has x: give the columns of the fit, in any order"):
        model.transform(X.rename(columns={"b": "x"}))
    assert not hasattr(model.fit(X.to_numpy()), "feature_names_in_")


def test_a_frame_of_ratings_is_filled_to_a_frame_of_users_and_items() -> None:
    frame = pd.DataFrame({"user": ["b", "a", "b", "c"], "item": [3, 1, 1, 3], "rating": [1.0, 2.0, 3.0, 4.0]})
    model = MatrixCompletion(1, reg=1.0, random_state=0).fit(frame)
    filled = model.impute(frame)
    assert list(filled.index) == ["a", "b", "c"] and list(filled.columns) == [1, 3]
    assert filled.loc["b", 3] == 1.0 and filled.loc["a", 1] == 2.0


def test_a_wide_frame_is_no_list_of_ratings_whatever_its_columns_are_called() -> None:
    wide = pd.DataFrame(masked(low_rank(20, 3, 1), 0.7), columns=["row", "col", "value"])
    model = MatrixCompletion(1, reg=0.1, random_state=0).fit(wide)
    assert model.row_factors_.shape == (20, 1) and model.row_ids_ is None
    np.testing.assert_array_equal(
        model.components_, MatrixCompletion(1, reg=0.1, random_state=0).fit(wide.to_numpy()).components_
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"customer": ["a", "b"], "sku": ["x", "y"], "stars": [1, 2]},
            "customer, sku do not hold numbers: name them",
        ),
        (
            {"customer": [1, 2], "sku": [3, 4], "stars": [1, 2]},
            "ratings need columns named user, item and rating",
        ),
        ({"user": ["a"], "item": ["x"], "stars": [1]}, "one named rating, value or score is missing"),
    ],
)
def test_a_frame_of_ratings_with_other_names_is_told_what_is_needed(columns, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatrixCompletion(1).fit(pd.DataFrame(columns))


@pytest.mark.parametrize(
    "make", [lambda: MatrixCompletion(1, reg=0.1, random_state=0), lambda: RobustLowRank(1)]
)
def test_frames_of_pandas_own_types_are_frames_of_numbers(make) -> None:
    whole = np.random.default_rng(0).integers(0, 9, (12, 1)) * np.arange(1, 6)
    plain = pd.DataFrame(masked(whole.astype(float), 0.8), columns=list("abcde"))
    wanted = make().fit(plain).components_
    for frame in (
        plain.astype("Float64"),
        plain.astype("Int64"),
        plain.astype({"a": "Int32", "c": "Float32"}),
    ):
        np.testing.assert_allclose(make().fit(frame).components_, wanted, atol=1e-9)


@pytest.mark.parametrize("dtype", ["Int64", "category", "string", "object"])
def test_ids_and_ratings_of_pandas_own_types(dtype: str) -> None:
    frame = pd.DataFrame({"user": [3, 1, 3, 2, 1], "item": [7, 7, 8, 8, 9], "rating": [1, 2, 3, 4, 5]})
    wanted = MatrixCompletion(1, reg=1.0, random_state=0).fit(frame)
    given = frame.assign(user=frame.user.astype(dtype), rating=frame.rating.astype("Int16"))
    found = MatrixCompletion(1, reg=1.0, random_state=0).fit(given)
    assert list(map(str, found.row_ids_)) == ["1", "2", "3"]
    np.testing.assert_allclose(found.components_, wanted.components_, atol=1e-12)
    np.testing.assert_allclose(found.predict([2, 3], [7, 9]), wanted.predict([2, 3], [7, 9]), atol=1e-12)
    np.testing.assert_allclose(found.predict(given.user, given.item), wanted.predict(frame.user, frame.item))


def test_ids_beyond_what_floats_tell_apart_are_different_ids() -> None:
    large = 2**60
    frame = pd.DataFrame(
        {"user": [large + 1, large + 2, large + 1], "item": [1, 1, 2], "rating": [1.0, 5.0, 2.0]}
    )
    model = MatrixCompletion(1, reg=1.0, random_state=0).fit(frame)
    assert model.row_ids_.tolist() == [large + 1, large + 2]
    low, high = model.predict([large + 1, large + 2], [1, 1])
    assert low < high and model.predict([large + 3], [1])[0] not in (low, high)


def test_rows_and_columns_of_which_nothing_is_known_are_zero_and_spoil_nothing() -> None:
    X = masked(low_rank(30, 20, 2), 0.9)
    X[4], X[:, 7] = np.nan, np.nan
    rest = np.delete(np.delete(X, 4, 0), 7, 1)
    fitted = RobustLowRank(random_state=0).fit(X)
    assert np.abs(fitted.matrix_[4]).max() < 1e-12 and np.abs(fitted.matrix_[:, 7]).max() < 1e-12
    found = np.delete(np.delete(fitted.matrix_, 4, 0), 7, 1)
    np.testing.assert_allclose(found, RobustLowRank(random_state=0).fit(rest).matrix_, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (1, 1)])
def test_a_table_of_one_row_or_column_is_itself(shape: tuple[int, int]) -> None:
    X = np.random.default_rng(1).normal(size=shape)
    np.testing.assert_allclose(RobustLowRank().fit(X).matrix_, X, atol=1e-6)
    np.testing.assert_allclose(
        MatrixCompletion(1, reg=0.0, fit_bias=False, all_observed=True).fit(X).impute(X), X
    )


def test_constant_columns_are_completed_to_their_constant() -> None:
    whole = np.tile([3.0, -1.0, 0.0, 7.0], (20, 1))
    X = masked(whole, 0.7)
    known = np.nan_to_num(X).any(1)  # a zero alone tells nothing
    filled = MatrixCompletion(1, reg=0.0, fit_bias=False, max_iter=60, tol=0.0).fit(X).impute(X)
    np.testing.assert_allclose(filled[known], whole[known], atol=1e-6)
    stream = StreamingPCA(2, center=True, whiten=True, random_state=0).fit(whole)
    assert np.isfinite(stream.transform(np.ones((2, 4)))).all()
