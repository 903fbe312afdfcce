"""Files in, files out: the two jobs and their commands."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer.testing
from problems import cos2, light_rows, low_rank

from eckart.cli import app
from eckart.errors import InputError
from eckart.jobs.recover.recovering import complete, eigenvector
from eckart.recovery import MatrixCompletion, StreamingPCA

ROWS = light_rows(3000, 16, 4.0)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    table = 3 + 8 * low_rank(60, 40, 2) + rng.normal(0, 0.1, (60, 40))
    users, items = np.nonzero(rng.random(table.shape) < 0.5)
    frame = pd.DataFrame(
        {"userId": users, "movieId": [f"m{i}" for i in items], "rating": table[users, items]}
    )
    frame.to_csv(tmp_path / "ratings.csv", index=False)
    return tmp_path / "ratings.csv"


def test_complete_writes_a_model_tables_and_its_error(ratings: Path, tmp_path: Path) -> None:
    steps = []
    report = complete(
        ratings, output=tmp_path / "out", rank=2, reg=0.1, on_iteration=lambda *x: steps.append(x)
    )
    assert report.users == 60 and report.items == 40 and report.test_ratings > 50
    assert report.test_rmse < 0.3 < report.bias_rmse
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == asdict(report)
    assert report.reg == 0.1
    table = pd.read_csv(ratings)
    held = np.random.default_rng(0).random(len(table)) < 0.1
    trial = MatrixCompletion(2, reg=0.1, random_state=0).fit(table[~held])
    assert report.ranking == pytest.approx(trial.ranking_scores(table[held], k=10))
    assert report.test_rmse == pytest.approx(-trial.score(table[held]))
    model = MatrixCompletion.load(tmp_path / "out" / "model")
    users, items = (
        pd.read_csv(tmp_path / "out" / f"{name}.csv", dtype={"name": str}) for name in ("users", "items")
    )
    by_hand = model.mean_ + users.bias[3] + items.bias[5] + (users.iloc[3, 2:] @ items.iloc[5, 2:])
    assert model.predict([users.name[3]], [items.name[5]])[0] == pytest.approx(by_hand)
    assert steps[0] == (1, 30)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_biases_alone_are_those_at_any_unit(ratings: Path, tmp_path: Path, unit: float) -> None:
    first = complete(ratings, output=tmp_path / "a", rank=2)
    table = pd.read_csv(ratings)
    table["rating"] *= unit
    table.to_csv(ratings, index=False)
    again = complete(ratings, output=tmp_path / "b", rank=2)
    assert again.bias_rmse == pytest.approx(unit * first.bias_rmse, rel=1e-3)
    assert again.ranking == pytest.approx(first.ranking, abs=0.02)


def test_clicks_without_ratings_are_ranked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    taste, kind = np.repeat([0, 1], 30), np.repeat([0, 1], 20)
    users, items = np.nonzero(rng.random((60, 40)) < np.where(taste[:, None] == kind, 0.6, 0.02))
    pd.DataFrame({"user": users, "item": items}).to_csv(tmp_path / "clicks.csv", index=False)
    report = complete(tmp_path / "clicks.csv", output=tmp_path / "out", rank=2, implicit=True)
    assert report.test_rmse is None and report.bias_rmse is None
    assert report.ranking["recall"] > 0.8 and report.ranking["users"] > 30
    assert MatrixCompletion.load(tmp_path / "out" / "model").implicit
    with pytest.raises(InputError, match="name them user, item and rating"):
        complete(tmp_path / "clicks.csv", output=tmp_path / "other", rank=2)


def test_nothing_held_out_measures_nothing_and_strangers_alone_rank_nothing(
    ratings: Path, tmp_path: Path
) -> None:
    report = complete(ratings, output=tmp_path / "out", rank=2, test_share=0.0)
    assert (report.test_ratings, report.test_rmse, report.bias_rmse, report.ranking) == (0, None, None, None)
    model = MatrixCompletion.load(tmp_path / "out" / "model")
    stranger = pd.DataFrame({"user": [-1], "item": ["m0"], "rating": [3.0]})
    scores = model.ranking_scores(stranger)
    assert scores["users"] == 0 and np.isnan(scores["ndcg"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratings": "nothing.csv"}, "nothing.csv cannot be read"),
        ({"test_share": 1.0}, "--test-share is 1.0"),
        ({"test_share": 0.99999}, "--test-share 0.99999 leaves 0 ratings .* lower --test-share or --rank"),
        (
            {"test_share": 0.999},
            "--test-share 0.999 leaves 1 ratings of 1 users and 1 items, too few for rank 2",
        ),
        ({"rank": 41}, "the file holds .* 60 users and 40 items, too few for rank 41"),
        ({"colour": 1}, "MatrixCompletion takes all_observed"),
        ({"rank": 0}, "n_components is 0: give "),
        ({"reg": -1.0}, "reg is -1.0: give "),
        ({"n_jobs": 0}, "n_jobs is 0: give "),
    ],
)
def test_complete_refuses(ratings: Path, tmp_path: Path, change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        complete(**{"ratings": ratings, "output": tmp_path / "out", "rank": 2} | change)
    assert not (tmp_path / "out").exists()


def test_a_user_whose_only_rating_is_held_out_is_predicted_by_the_rest(ratings: Path, tmp_path: Path) -> None:
    table = pd.read_csv(ratings)
    lonely = pd.DataFrame({"userId": range(100, 140), "movieId": "m0", "rating": 3.0})
    pd.concat([table, lonely]).to_csv(ratings, index=False)
    report = complete(ratings, output=tmp_path / "out", rank=2, test_share=0.5)
    assert report.users == 100
    assert np.isfinite(report.test_rmse)


def test_complete_refuses_ratings_that_are_no_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item,rating\n1,2,3\n1,3,good\n")
    with pytest.raises(InputError, match=r"a\.csv, row 2, column rating: the rating is 'good'"):
        complete(tmp_path / "a.csv", output=tmp_path / "out", rank=1)


def test_complete_refuses_a_table_without_the_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match="has columns x, y: name them user, item and rating"):
        complete(tmp_path / "a.csv", output=tmp_path / "out")


@pytest.mark.parametrize("form", ["file", "stream", "bare"])
def test_eigenvector_of_rows_in_every_form(tmp_path: Path, form: str) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    source, options = {
        "file": (tmp_path / "rows.npy", {}),
        "stream": (io.BytesIO(npy(ROWS)), {}),
        "bare": (io.BytesIO(ROWS.astype(np.float32).tobytes()), {"width": 16}),
    }[form]
    pca = eigenvector(source, output=tmp_path / "v.npy", **options)
    assert cos2(pca.components_[0].astype(float), ROWS) > 0.95
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), pca.components_)
    if form != "bare":
        np.testing.assert_allclose(
            pca.components_,
            StreamingPCA(n_samples=3000, random_state=0).partial_fit(ROWS).components_,
            atol=1e-10,
        )


class Trickle(io.BytesIO):
    """A pipe that hands over a few bytes at a time."""

    def read(self, size: int = -1) -> bytes:
        return super().read(min(size, 1000))


def test_a_pipe_that_trickles() -> None:
    assert cos2(eigenvector(Trickle(npy(ROWS))).components_[0], ROWS) > 0.95


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (npy(ROWS)[:-3], {}, "rows end in the middle of row 3000, of 16 numbers"),
        (npy(ROWS)[: -16 * 8], {}, "rows end after row 2999, 3000 were announced"),
        (ROWS.tobytes()[:-3], {"width": 16, "dtype": "float64"}, "in the middle of row 3000"),
        (ROWS.tobytes(), {}, "give --width"),
        (b"", {"width": 4}, "rows: there are none"),
        (npy(ROWS.T.copy(order="C").T), {}, "column by column"),
        (npy(ROWS[0]), {}, r"of shape \(16,\)"),
        (npy(ROWS[:0]), {}, r"of shape \(0, 16\): there are none"),
        (npy(ROWS[:, :0]), {}, r"of shape \(3000, 0\): there are none"),
        (npy(ROWS), {"width": 5}, "width is 5, and rows have 16 numbers by their header"),
        (ROWS.tobytes(), {"width": 16, "dtype": "float64", "method": "oja"}, "give n_samples or eta"),
        (npy(np.array([["a"]])), {}, "and type <U1"),
        (npy(ROWS)[:9], {}, "broken .npy header"),
        (npy(np.array([[1.0, 2.0], [3.0, np.nan]])), {}, "NaN or infinity in row 2"),
        (npy(ROWS), {"colour": 1}, "StreamingPCA takes"),
        (npy(ROWS), {"components": 0}, "n_components is 0: give "),
        (ROWS.tobytes(), {"width": 16, "dtype": "int8"}, "dtype is 'int8': give float32 or float64"),
    ],
)
def test_eigenvector_refuses(tmp_path: Path, data: bytes, options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        eigenvector(io.BytesIO(data), output=tmp_path / "v.npy", **options)
    assert not (tmp_path / "v.npy").exists()


def test_an_output_that_cannot_be_written_is_refused_before_the_rows_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output, message in (
        (tmp_path, "is a directory: name a file in it"),
        (tmp_path / "file" / "v.npy", "file is a file: choose another place"),
    ):
        rows = io.BytesIO(npy(ROWS))
        with pytest.raises(InputError, match=message):
            eigenvector(rows, output=output)
        assert rows.tell() == 0


def test_commands(ratings: Path, tmp_path: Path) -> None:
    def run(*words: object, **more: object) -> typer.testing.Result:
        return typer.testing.CliRunner().invoke(app, ["recover", *map(str, words)], **more)

    done = run("complete", ratings, "--rank", 2, "--output", tmp_path / "o", "--option", "reg=0.1")
    assert done.exit_code == 0 and "60 users, 40 items, ridge 0.1" in done.stdout
    assert "biases alone" in done.stdout and "nDCG@10" in done.stdout
    table = pd.read_csv(ratings)
    table.loc[:, ["userId", "movieId"]].to_csv(tmp_path / "clicks.csv", index=False)
    done = run("complete", tmp_path / "clicks.csv", "--rank", 2, "--output", tmp_path / "p", "--implicit")
    assert done.exit_code == 0 and "recall@10" in done.stdout and "RMSE" not in done.stdout
    done = run("eigenvector", "-", "--json", input=npy(ROWS))
    found = json.loads(done.stdout)
    assert found["rows"] == 3000 and cos2(np.array(found["components"][0]), ROWS) > 0.95
    done = run("eigenvector", "-", "--option", "method=oja-grid", input=npy(ROWS))
    assert done.exit_code == 0 and "3,000 rows of 16 numbers, 0 of them kept apart" in done.stdout


def observed(rows: int = 300) -> list[tuple[str, str, float]]:
    """Ratings of 20 users and 15 items, whose names are numbers with zeros before them."""
    draw = np.random.default_rng(0)
    return [
        (f"{u:03d}", f"{i}", float(1 + (u * i) % 5))
        for u, i in zip(draw.integers(0, 20, rows), draw.integers(0, 15, rows), strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "sep", "columns", "encoding", "given"),
    [
        ("u.data", "\t", "user,item,rating", "utf-8", "tab"),
        ("ratings.dat", "::", "user,item,rating", "utf-8", "::"),
        ("a.csv", ";", None, "latin-1", ";"),
        ("a.tsv", "\t", None, "utf-8", None),
        ("a.csv", ",", None, "utf-16", None),
    ],
)
def test_tables_as_people_write_them(
    tmp_path: Path, name: str, sep: str, columns: str | None, encoding: str, given: str | None
) -> None:
    rows = [*observed(), ("caf\u00e9", "001", 3.0)]
    lines = [sep.join(map(str, row)) for row in rows]
    text = "\n".join(lines if columns else [sep.join(("user", "item", "rating")), *lines])
    (tmp_path / name).write_bytes(text.encode(encoding))
    report = complete(
        tmp_path / name, output=tmp_path / "out", sep=given, columns=columns, encoding=encoding, rank=2
    )
    items = pd.read_csv(tmp_path / "out/items.csv", dtype={"name": str}).name.tolist()
    users = pd.read_csv(tmp_path / "out/users.csv", dtype={"name": str}).name.tolist()
    assert (report.ratings, report.users, report.items) == (301, 21, 16)
    assert "001" in items and "1" in items and "caf\u00e9" in users and "007" in users


def test_bad_tables_are_refused_by_row_and_column(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    for content, options, message in (
        ("user,item,rating\n1,2,3\n1,3,\n", {}, "row 2, column rating: the rating is missing"),
        ("user,item,rating\n1,2,3\n1,3,nan\n", {}, "row 2, column rating: the rating is 'nan'"),
        ("user,item,rating\n1,2,3\n,3,1\n", {}, "row 2, column user: the id is missing"),
        ("user,item,rating\n1,2,3\n1,3\n", {}, "line 3: 2 fields where the header has 3"),
        ("1;2;3\n", {"sep": ";"}, "columns 1, 2, 3: name them user, item and rating, .* --columns"),
        ("1;2;3\n", {"sep": ""}, "--sep is ''"),
        ("1;2;3\n", {"columns": "user,,rating"}, "--columns 'user,,rating': give a name for each"),
        ("1;2;3\n", {"encoding": "latin-0"}, "--encoding 'latin-0' is not known"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=message):
            complete(file, output=tmp_path / "out", rank=1, **options)
    file.write_bytes("user,item,rating\ncaf\u00e9,1,2\n".encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8 text"):
        complete(file, output=tmp_path / "out", rank=1)
    assert not (tmp_path / "out").exists()


def test_a_pair_given_twice_is_on_one_side(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    pairs = [(u, i) for u in range(30) for i in range(20)]
    rows = [(u, i, r) for (u, i), r in zip(pairs, draw.normal(size=len(pairs)), strict=True)]
    for name, table in (("once", rows), ("twice", [*rows, *rows])):
        pd.DataFrame(table, columns=["user", "item", "rating"]).to_csv(tmp_path / f"{name}.csv", index=False)
    once, twice = (
        complete(tmp_path / f"{name}.csv", output=tmp_path / name, rank=8, reg=reg, test_share=0.3)
        for name, reg in (("once", 2.0), ("twice", 4.0))  # twice the data and the ridge: the same problem
    )
    assert twice.test_ratings == 2 * once.test_ratings
    assert twice.test_rmse == pytest.approx(once.test_rmse, rel=0.05)


def test_ids_that_look_like_numbers_are_found_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "user,item,rating\n" + "\n".join(",".join(map(str, row)) for row in observed())
    )
    complete(tmp_path / "a.csv", output=tmp_path / "out", rank=2)
    model = MatrixCompletion.load(tmp_path / "out/model")
    assert model.predict(["007"], [3]) == model.predict(["007"], ["3"])
    assert model.predict(["007"], [3]) != model.predict([7], [3])
