"""Files as people have them, through the commands that read them: no header, other separators, encodings, decimals."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tiny_models import BAD, GOOD, NEUTRAL, save_bert

import eckart
from eckart.cli import main
from eckart.errors import InputError
from eckart.jobs.recover.recovering import complete

DRAW = random.Random(0)
RATINGS = [
    (user, item, DRAW.choice([0.5, 1.5, 2.0, 3.5, 4.0]), 978300760 + user)
    for user in range(30)
    for item in DRAW.sample(range(20), 10)
]
TEXTS = [
    (f"{' '.join(DRAW.choices(NEUTRAL, k=5))} {DRAW.choice(words)} café {i}", label)
    for i in range(60)
    for words, label in ((GOOD, "gut"), (BAD, "übel"))
]


def ask(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def write(
    path: Path, rows: list[tuple[Any, ...]], sep: str, header: str, encoding: str, decimal: str = "."
) -> Path:
    lines = [sep.join(str(cell).replace(".", decimal) for cell in row) for row in rows]
    path.write_bytes("".join(f"{line}\n" for line in [header, *lines] if line).encode(encoding))
    return path


# --- ratings ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `recover complete` says of the ratings in a plain file."""
    folder = tmp_path_factory.mktemp("plain")
    plain = write(folder / "ratings.csv", RATINGS, ",", "user,item,rating,timestamp", "utf-8")
    return dataclasses.asdict(complete(plain, rank=3, output=folder / "out"))


@pytest.mark.parametrize(
    ("name", "sep", "header", "encoding", "decimal", "options"),
    [
        # MovieLens 100k, 1M, and what a spreadsheet writes in half of Europe
        ("u.data", "\t", "", "utf-8", ".", ["--sep", "tab", "--columns", "user,item,rating,timestamp"]),
        (
            "ratings.dat",
            "::",
            "",
            "latin-1",
            ".",
            ["--sep", "::", "--columns", "UserID,ItemID,Rating,Timestamp", "--encoding", "latin-1"],
        ),
        ("a.csv", ";", "user;item;rating;time", "cp1252", ",", ["--sep", ";", "--encoding", "cp1252"]),
        ("a.csv", ";", "user;item;rating;time", "utf-16", ",", ["--sep", ";", "--encoding", "utf-16"]),
    ],
)
def test_ratings_in_other_dress_give_the_same_model(
    name: str,
    sep: str,
    header: str,
    encoding: str,
    decimal: str,
    options: list[str],
    completed: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    file = write(tmp_path / name, RATINGS, sep, header, encoding, decimal)
    words = ("recover", "complete", file, "--rank", 3, "--output", tmp_path / "out", "--json", *options)
    code, out, err = ask(capsys, *words)
    assert code == 0, err
    found = json.loads(out)
    for key in ("ratings", "users", "items", "test_rmse", "bias_rmse", "reg"):
        assert found[key] == pytest.approx(completed[key]), key


@pytest.mark.parametrize(
    ("rows", "sep", "options", "told"),
    [
        ([(1, 2, "3,5")], ";", [], "the header is one field, 'user;item;rating': name what stands between"),
        ([(1, 2, "3,5"), (1, 3, "4.5")], ";", ["--sep", ";"], "row 1, column rating: the rating is '3,5'; "),
        (
            [(1, 2, "1,234"), (2, 2, "2,000")],
            ";",
            ["--sep", ";"],
            "row 1, column rating: the rating is '1,234'; ",
        ),
        (
            [(1, 2, "3,5,1"), (2, 2, "2,0")],
            ";",
            ["--sep", ";"],
            "row 1, column rating: the rating is '3,5,1'; ",
        ),
        ([(1, 2, 3), (1, 2)], "::", ["--sep", "::"], "line 3: 2 fields where the header has 3"),
        (
            [(1, 2, 3)],
            "::",
            ["--sep", "::", "--columns", "user,item,rating"],
            "row 1, column rating: the rating is 'rating'",
        ),
    ],
)
def test_ratings_that_are_refused(
    rows: list[tuple[Any, ...]],
    sep: str,
    options: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.csv"
    file.write_text("\n".join([sep.join(("user", "item", "rating")), *(sep.join(map(str, r)) for r in rows)]))
    code, out, err = ask(capsys, "recover", "complete", file, "--output", tmp_path / "out", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert not (tmp_path / "out").exists()


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("model") / "bert")


def adapt(bert: Path, data: Path, output: Path, *options: object) -> list[object]:
    small = ("--steps", 1, "--batch-size", 8, "--max-length", 16, "--option", "r=1")
    return ["adapt", "--model", bert, "--data", data, "--output", output, *small, *options]


FORMS: list[tuple[str, str, str, str, list[str]]] = [
    ("texts.data", "\t", "", "utf-8", ["--sep", "tab", "--columns", "text,label"]),
    ("texts.dat", "::", "", "latin-1", ["--sep", "::", "--columns", "text,label", "--encoding", "latin-1"]),
    ("texts.csv", ";", "text;label", "cp1252", ["--sep", ";", "--encoding", "cp1252"]),
]


def test_texts_in_other_dress_train_the_same_adapter(
    bert: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = []
    plain = ("texts.csv", ",", "text,label", "utf-8", [])
    for number, (name, sep, header, encoding, options) in enumerate([plain, *FORMS]):
        (tmp_path / str(number)).mkdir()
        file = write(tmp_path / str(number) / name, TEXTS, sep, header, encoding)
        code, out, err = ask(capsys, *adapt(bert, file, tmp_path / f"out{number}", *options, "--json"))
        assert code == 0, err
        found.append(json.loads(out))
    for metrics in found:
        assert metrics["labels"] == ["gut", "übel"]
        assert metrics["losses"] == found[0]["losses"]
        assert metrics["test"]["score"] == found[0]["test"]["score"]


def test_what_was_said_of_the_file_is_repeated_by_the_run(
    bert: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name, sep, header, encoding, options = FORMS[1]
    file = write(tmp_path / name, TEXTS, sep, header, encoding)
    assert ask(capsys, *adapt(bert, file, tmp_path / "one", *options))[0] == 0
    again = ("adapt", "--config", tmp_path / "one/config.yaml", "--output", tmp_path / "two", "--json")
    code, out, err = ask(capsys, *again)
    assert code == 0, err
    assert json.loads(out)["losses"] == json.loads((tmp_path / "one/metrics.json").read_text())["losses"]


@pytest.mark.parametrize("command", ["adapt", "compare"])
@pytest.mark.parametrize(
    ("encoding", "options", "told"),
    [
        ("latin-1", ["--sep", ";"], "is not UTF-8 text"),
        (
            "utf-8",
            [],
            "the header is one field, 'text;label': name what stands between its fields, such as --sep ';'",
        ),
        ("utf-8", ["--sep", ";", "--columns", "text"], "2 fields where --columns names 1"),
        (
            "utf-8",
            ["--sep", "::"],
            "the header is one field, 'text;label': name what stands between its fields",
        ),
        ("utf-8", ["--encoding", "latin-0"], "--encoding 'latin-0' is not known"),
    ],
)
def test_texts_that_are_refused(
    command: str,
    encoding: str,
    options: list[str],
    told: str,
    bert: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    file = write(tmp_path / "texts.csv", TEXTS, ";", "text;label", encoding)
    words = (command, "--model", bert, "--data", file, "--output", tmp_path / "out", *options)
    code, out, err = ask(capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert told in err


@pytest.mark.parametrize("form", FORMS)
def test_compare_is_told_of_the_file(
    form: tuple[str, str, str, str, list[str]],
    bert: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    from eckart.tasks.task import load_task

    def catch(model: str, data: str, **told: Any) -> None:
        names = ("kind", "sep", "columns", "encoding")
        task = load_task(model, data, max_length=16, **{name: told[name] for name in names if name in told})
        assert task.describe()["labels"] == ["gut", "übel"]
        raise InputError("enough")

    name, sep, header, encoding, options = form
    file = write(tmp_path / name, TEXTS, sep, header, encoding)
    monkeypatch.setattr(eckart, "compare", catch)
    words = ("compare", "--model", bert, "--data", file, "--output", tmp_path / "o", *options)
    assert ask(capsys, *words)[2] == "eckart: error: enough\n"
