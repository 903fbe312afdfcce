"""Questions with answers to choose from: every shape that public sets have them in, and what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eckart.data.choices import CHOICES
from eckart.data.read import Data, read_data
from eckart.data.splits import PARTS
from eckart.errors import InputError

ROWS = 12


def write(path: Path, row: dict[str, Any], **columns: list[Any]) -> Path:
    """A table of `ROWS` times a row, with some columns that differ from row to row."""
    rows = [
        {**row, **{name: values[i % len(values)] for name, values in columns.items()}} for i in range(ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def found(data: Data) -> set[tuple[str, tuple[str, ...], int]]:
    return {
        (context, choices, right)
        for part in PARTS
        for (context, choices), right in zip(data.splits[part].inputs, data.splits[part].labels, strict=True)
    }


ARC = {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, list[Any]], str, list[str]]] = {
    "HellaSwag": (
        {"ctx": "a", "ctx_a": "b", "endings": ["x", "y", "z"]},
        {"label": ["0", "2"]},
        "a",
        ["ctx", "endings"],
    ),
    "PIQA": ({"goal": "a", "sol1": "x", "sol2": "y"}, {"label": [0, 1]}, "a", ["goal", "sol1", "sol2"]),
    "ARC": ({"question": "a", "choices": ARC}, {"answerKey": ["A", "C"]}, "a", ["question", "choices"]),
    "ARC, numbered": (
        {"question": "a", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}},
        {"answerKey": ["1", "3"]},
        "a",
        ["question", "choices"],
    ),
    "CommonsenseQA": (
        {
            "question": "a",
            "choices": [
                {"text": "x", "label": "A"},
                {"text": "y", "label": "B"},
                {"text": "z", "label": "C"},
            ],
        },
        {"answerKey": ["A", "C"]},
        "a",
        ["question", "choices"],
    ),
    "MMLU": ({"question": "a", "choices": ["x", "y", "z"]}, {"answer": [0, 2]}, "a", ["question", "choices"]),
    "WinoGrande": (
        {"sentence": "a", "option1": "x", "option2": "y"},
        {"answer": ["1", "2"]},
        "a",
        ["sentence", "option1"],
    ),
    "Social IQa": (
        {"context": "a", "question": "b", "answerA": "x", "answerB": "y", "answerC": "z"},
        {"label": ["1", "3"]},
        "a b",
        ["context", "question", "answerA"],
    ),
    "RACE": (
        {"article": "a", "question": "b", "options": ["x", "y", "z"]},
        {"answer": ["A", "C"]},
        "a b",
        ["article"],
    ),
    "SWAG": (
        {"startphrase": "a", "ending0": "x", "ending1": "y", "ending2": "z"},
        {"label": [0, 2]},
        "a",
        ["startphrase"],
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(tmp_path: Path, name: str) -> None:
    row, label, context, columns = SHAPES[name]
    data = read_data(write(tmp_path / "d.jsonl", row, **label))
    assert (data.kind, data.target, data.labels) == (CHOICES, CHOICES, None)
    three = ("x", "y", "z") if len(row.get("endings", row.get("options", "xyz"))) == 3 else ()
    choices = ("x", "y") if name in ("PIQA", "WinoGrande") else three
    assert found(data) == {(context, choices, 0), (context, choices, len(choices) - 1)}
    assert data.columns[: len(columns)] == columns and data.columns[-1] == next(iter(label))
    assert f"{len(choices)} choices for each example" in data.notes
    assert any("from 1" in note for note in data.notes) == (name in ("WinoGrande", "Social IQa"))


def test_columns_are_named_and_others_are_told(tmp_path: Path) -> None:
    row = {"story": "a", "good": "x", "bad": 7, "note": "n"}
    path = write(tmp_path / "d.jsonl", row, right=["a", "B"])
    data = read_data(path, target=CHOICES, text_column="story,good,bad", label_column="right")
    assert found(data) == {("a", ("x", "7"), 0), ("a", ("x", "7"), 1)}
    assert (
        data.columns == ["story", "good", "bad", "right"] and "columns that are not used: note" in data.notes
    )


def test_tenth_column_stands_behind_the_second(tmp_path: Path) -> None:
    row = {"question": "a", **{f"choice{i}": f"c{i}" for i in (10, 2, 1)}}
    data = read_data(write(tmp_path / "d.jsonl", row, label=[0, 2]))
    assert found(data) == {("a", ("c1", "c2", "c10"), 0), ("a", ("c1", "c2", "c10"), 2)}


def test_examples_may_have_more_choices_than_others(tmp_path: Path) -> None:
    data = read_data(
        write(tmp_path / "d.jsonl", {"question": "a"}, choices=[["x", "y"], ["x", "y", "z"]], label=[1])
    )
    assert found(data) == {("a", ("x", "y"), 1), ("a", ("x", "y", "z"), 1)}
    assert "2 to 3 choices for each example" in data.notes


def test_a_split_of_hidden_labels_is_left_out(tmp_path: Path) -> None:
    row = {"ctx": "a", "endings": ["x", "y"]}
    write(tmp_path / "train.jsonl", row, label=["0", "1"])
    write(tmp_path / "validation.jsonl", row, label=["1", "0"])
    write(tmp_path / "test.jsonl", row, label=["", "-1"])
    data = read_data(tmp_path)
    assert any("the test split has hidden labels" in note for note in data.notes)
    assert data.splits["test"].labels == [1, 0] * 6
    for part in ("train", "validation"):
        write(tmp_path / f"{part}.jsonl", row, label=[-1])
    with pytest.raises(InputError, match="nothing to learn from"):
        read_data(tmp_path)


REFUSED = {
    "row 1, column choices: 'x' is no list of choices": ({"choices": "x"}, [0]),
    "row 1, column choices: the choices are missing": ({"choices": []}, [0]),
    "row 1, column choices: 1 choice; give two": ({"choices": ["x"]}, [0]),
    "row 1, column choices: the text is missing": ({"choices": ["x", " "]}, [0]),
    "row 1, column choices: ['y'] is not text": ({"choices": ["x", ["y"]]}, [0]),
    "2 choices with 1 marks": ({"choices": {"text": ["x", "y"], "label": ["A"]}}, [0]),
    "row 1, column question: the text is missing": ({"question": " "}, [0]),
    "row 2, column label: '2' is none of its 2 choices": ({}, [0, 2]),
    "row 1, column label: 'C' is none of its 2 choices": ({}, ["C", 0]),
    "row 1, column label: 'right' is none of its 2": ({}, ["right"]),
    "row 2, column label: '' is none of its 2": ({}, [0, None]),
    "row 2, column label: '-1' is none of its 2": ({}, [0, -1]),
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_cells_are_refused(tmp_path: Path, words: str) -> None:
    change, labels = REFUSED[words]
    path = write(tmp_path / "d.jsonl", {"question": "a", "choices": ["x", "y"], **change}, label=labels)
    with pytest.raises(InputError) as caught:
        read_data(path, target=CHOICES)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_columns_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"question": "a", "choices": ["x", "y"], "label": 0})
    for options, words in (
        ({"text_column": "none"}, "--text-column none is not in"),
        ({"label_column": "none"}, "--label-column none is not in"),
    ):
        with pytest.raises(InputError, match=words):
            read_data(path, target=CHOICES, **options)
    bare = [({"note": "a", "label": 0}, "no column of the context"), ({"question": "a", "label": 0}, "of the choices"),
            ({"question": "a", "choices": ["x", "y"]}, "of the right choice")]  # fmt: skip
    for row, words in bare:
        with pytest.raises(InputError, match=words):
            read_data(write(tmp_path / "d.jsonl", row), target=CHOICES)
