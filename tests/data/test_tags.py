"""Words with tags: columns, names and numbers, what an entity is, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eckart.data.read import read_data
from eckart.data.splits import PARTS
from eckart.data.tags import TAGS, entities
from eckart.errors import InputError


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(rows[i % len(rows)]) + "\n" for i in range(12)))
    return path


GOOD = {"tokens": ["Ann", "saw", "New", "York"], "ner_tags": ["B-PER", "O", "B-LOC", "I-LOC"]}


@pytest.mark.parametrize("name", ["ner_tags", "tags", "labels"])
def test_columns(tmp_path: Path, name: str) -> None:
    rows = [
        {"id": 1, "tokens": GOOD["tokens"], name: GOOD["ner_tags"]},
        {"id": 2, "tokens": ["so"], name: ["O"]},
    ]
    data = read_data(write(tmp_path / "d.jsonl", *rows))
    assert (data.kind, data.target, data.labels) == (TAGS, TAGS, ["O", "B-LOC", "I-LOC", "B-PER"])
    assert data.columns == ["tokens", name] and "columns that are not used: id" in data.notes
    read = {
        (words, tuple(tags))
        for part in PARTS
        for words, tags in zip(data.splits[part].inputs, data.splits[part].labels, strict=True)
    }
    assert read == {(("Ann", "saw", "New", "York"), (3, 0, 1, 2)), (("so",), (0,))}


def test_numbers_are_tags_and_stay_in_their_order(tmp_path: Path) -> None:
    data = read_data(write(tmp_path / "d.jsonl", {"words": ["a", "b", "c"], "pos_tags": [10, 2, 0]}))
    assert data.labels == ["0", "2", "10"] and data.splits["train"].labels[0] == [2, 1, 0]


def test_names_of_a_saved_set_are_taken(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    feature = datasets.ClassLabel(names=["O", "B-X"])
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")),
                                  "ner_tags": datasets.Sequence(feature)})  # fmt: skip
    table = datasets.Dataset.from_dict(
        {"tokens": [["a", "b"]] * 12, "ner_tags": [[0, 1]] * 12}, features=features
    )
    table.save_to_disk(tmp_path / "set")
    assert read_data(tmp_path / "set").labels == ["O", "B-X"]


def test_tags_that_training_never_sees_are_told(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", {"tokens": ["a", "b"], "tags": ["O", "B-X"]})
    write(tmp_path / "test.jsonl", {"tokens": ["a", "b"], "tags": ["O", "B-Y"]})
    data = read_data(tmp_path)
    assert "tags that the train split has not: B-Y" in data.notes and data.labels == ["O", "B-X", "B-Y"]


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", ""),
        ("B-X I-X O", "X01"),
        ("B-X B-X I-X", "X00 X12"),
        ("I-X I-X O I-Y", "X01 Y33"),
        ("B-X I-Y I-Y", "X00 Y12"),
        ("O I-X B-X", "X11 X22"),
        ("B-X E-X I-X", "X01 X22"),
        ("S-X S-X", "X00 X11"),
        ("B-X I-X L-X U-X", "X02 X33"),
        ("B-X O I-X", "X00 X22"),
        ("E-X E-X", "X00 X11"),
    ],
)
def test_entities(tags: str, found: str) -> None:
    wanted = {(word[0], int(word[1]), int(word[2])) for word in found.split()}
    assert entities(tags.split()) == wanted


REFUSED = {
    "row 2, column ner_tags: 3 tags for 4 words": {"ner_tags": ["O", "O", "O"]},
    "row 2, column tokens: 'a b' is no list of words": {"tokens": "a b"},
    "row 2, column tokens: the words are missing": {"tokens": []},
    "row 2, column ner_tags: the tags are missing": {"ner_tags": None},
    "row 2, column tokens: ' ' is no word": {"tokens": ["Ann", " ", "New", "York"]},
    "row 2, column tokens: 3 is no word": {"tokens": ["Ann", 3, "New", "York"]},
    "row 2, column ner_tags: None is no tag": {"ner_tags": ["O", None, "O", "O"]},
    "row 2, column ner_tags: 0.5 is no tag": {"ner_tags": ["O", 0.5, "O", "O"]},
    "row 2, column ner_tags: the tag -1 is below 0": {"ner_tags": ["O", -1, "O", "O"]},
    "the tag 'B-LOC' is of the scheme BIO and 'PER' is not": {"ner_tags": ["PER", "O", "O", "O"]},
    "the tag 'B-LOC' is of the scheme BIO and 'X-PER' is not": {"ner_tags": ["X-PER", "O", "O", "O"]},
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_cells_are_refused(tmp_path: Path, words: str) -> None:
    path = write(tmp_path / "d.jsonl", GOOD, {**GOOD, **REFUSED[words]})
    with pytest.raises(InputError) as caught:
        read_data(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_too_few_sentences_for_three_splits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text((json.dumps(GOOD) + "\n") * 2)
    with pytest.raises(InputError, match="--data: 2 examples are too few for train, validation and test"):
        read_data(tmp_path / "d.jsonl")
    (tmp_path / "d.jsonl").write_text((json.dumps(GOOD) + "\n") * 3)
    assert [len(split) for split in read_data(tmp_path / "d.jsonl").splits.values()] == [1, 1, 1]
    (tmp_path / "d.jsonl").write_text("")
    with pytest.raises(InputError, match=r"d\.jsonl is empty"):
        read_data(tmp_path / "d.jsonl")


def test_columns_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"tokens": ["a"], "label": "x"})
    for options, words in (
        ({}, "no column of lists of tags"),
        ({"text_column": "none"}, "--text-column none is not in"),
        ({"label_column": "none"}, "--label-column none is not in"),
        ({"label_column": "label"}, "row 1, column label: 'x' is no list of tags"),
    ):
        with pytest.raises(InputError, match=words):
            read_data(path, target=TAGS, **options)
    with pytest.raises(InputError, match="every word has the tag 'O'"):
        read_data(write(tmp_path / "d.jsonl", {"tokens": ["a"], "tags": ["O"]}))
