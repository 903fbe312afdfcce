"""Reading text data: every form gives the same splits, and every fault one clear line."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from eckart.data.read import read_data
from eckart.data.splits import PARTS, Split, complete, limit, sample
from eckart.errors import InputError

ROWS = [{"text": f"sentence number {i}", "label": ["no", "yes"][i % 3 == 0]} for i in range(60)]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(30)


def write(path: Path, rows: list[dict] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        import pandas

        pandas.DataFrame(rows).to_parquet(path)
        return path
    if name.endswith(".jsonl"):
        content = "".join(json.dumps(row) + "\n" for row in rows)
    elif name.endswith(".json"):
        content = json.dumps(rows)
    else:
        lines = [list(rows[0]), *([str(x) for x in row.values()] for row in rows)]
        if name.endswith(".tsv"):
            content = "".join("\t".join(line) + "\n" for line in lines)
        else:
            content = "".join(",".join(f'"{x}"' for x in line) + "\n" for line in lines)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def refuse(source: object, *words: str, **options: object) -> None:
    """The source is refused in one line that holds all of the words."""
    with pytest.raises(InputError) as caught:
        read_data(source, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


FORMATS = ["csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "jsonl.gz"]


@pytest.mark.parametrize("ending", FORMATS)
def test_one_file_is_cut_80_10_10_the_same_in_every_format(tmp_path, ending):
    data = read_data(write(tmp_path / f"d.{ending}"))
    assert {part: len(split) for part, split in data.splits.items()} == {
        "train": 48,
        "validation": 6,
        "test": 6,
    }
    assert data.labels == ["no", "yes"]
    texts = [text for part in PARTS for text in data.splits[part].inputs]
    assert sorted(texts) == sorted(row["text"] for row in ROWS)
    truth = {row["text"]: row["label"] for row in ROWS}
    for split in data.splits.values():
        assert [data.labels[label] for label in split.labels] == [truth[text] for text in split.inputs]
        assert Counter(split.labels)[1] / len(split) == pytest.approx(1 / 3, abs=0.01)
    assert data.digest() == read_data(write(tmp_path / "other.csv")).digest()


def test_cuts_follow_the_seed(tmp_path):
    path = write(tmp_path / "d.csv")
    assert read_data(path, seed=1).digest() == read_data(path, seed=1).digest()
    assert read_data(path, seed=1).digest() != read_data(path, seed=2).digest()


def test_standard_dev_set_is_the_test_set(tmp_path):
    write(tmp_path / "train.csv", ROWS[:50])
    write(tmp_path / "dev.csv", ROWS[50:])
    (tmp_path / "README.md").write_text("about it")
    data = read_data(tmp_path)
    assert data.splits["test"].inputs == [row["text"] for row in ROWS[50:]]
    assert (len(data.splits["train"]), len(data.splits["validation"])) == (45, 5)
    assert any("validation split is the test split" in note for note in data.notes)


def test_three_files_are_taken_as_they_are(tmp_path):
    for i, name in enumerate(("train.jsonl", "valid.jsonl", "test.jsonl")):
        write(tmp_path / name, ROWS[i * 20 : i * 20 + 20])
    data = read_data(tmp_path)
    assert [data.splits[part].inputs[0] for part in PARTS] == [ROWS[i]["text"] for i in (0, 20, 40)]
    assert data.notes == []


def test_validation_and_test_alone_train_on_validation(tmp_path):
    write(tmp_path / "validation.csv", ROWS[:40])
    write(tmp_path / "test.csv", ROWS[40:])
    data = read_data(tmp_path)
    assert {part: len(split) for part, split in data.splits.items()} == {
        "train": 36,
        "validation": 4,
        "test": 20,
    }


def test_shards_of_one_split_are_joined(tmp_path):
    for i in range(2):
        write(tmp_path / f"train-0000{i}-of-00002.parquet", ROWS[i * 30 : i * 30 + 30])
    assert sum(map(len, read_data(tmp_path).splits.values())) == 60
    write(tmp_path / "test.csv")
    write(tmp_path / "test.parquet")
    refuse(tmp_path, "test.csv and test.parquet are the same split", "keep one")


def test_saved_datasets(tmp_path):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(20)]
    hidden = [{"text": f"h{i}", "label": -1} for i in range(5)]
    train = datasets.Dataset.from_list(rows, features=features)
    saved = {
        "train": train,
        "validation": train,
        "test": datasets.Dataset.from_list(hidden, features=features),
    }
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "three")
    train.save_to_disk(tmp_path / "one")
    data = read_data(tmp_path / "three")
    assert data.labels == ["a", "b"]
    assert len(data.splits["test"]) == 20
    assert any("hidden labels" in note for note in data.notes)
    assert sum(map(len, read_data(tmp_path / "one").splits.values())) == 20
    arrow = next((tmp_path / "one").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:200])
    refuse(tmp_path / "one", str(tmp_path / "one"), "damaged")


def test_pairs_by_name_and_by_option(tmp_path):
    rows = [{"sentence1": f"a{i}", "sentence2": f"b{i}", "other": f"c{i}", "label": i % 2} for i in range(30)]
    path = write(tmp_path / "d.jsonl", rows)
    found = {pair for split in read_data(path).splits.values() for pair in split.inputs}
    assert found == {(f"a{i}", f"b{i}") for i in range(30)}
    chosen = {
        pair for s in read_data(path, text_column="other, sentence1").splits.values() for pair in s.inputs
    }
    assert chosen == {(f"c{i}", f"a{i}") for i in range(30)}
    single = {text for s in read_data(path, text_column="other").splits.values() for text in s.inputs}
    assert single == {f"c{i}" for i in range(30)}


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([10, 9, 2], ["2", "9", "10"]),
        ([1.0, 0.0, 2.0], ["0", "1", "2"]),
        ([True, False, True], ["False", "True"]),
        (["b", "a", "c"], ["a", "b", "c"]),
    ],
)
def test_class_names_are_in_their_own_order(tmp_path, values, names):
    rows = [{"text": f"t{i}", "label": values[i % 3]} for i in range(30)]
    assert read_data(write(tmp_path / "d.jsonl", rows)).labels == names


def test_plain_text_is_cut_by_position_at_line_ends(tmp_path):
    text = "".join(f"line {i}\n" for i in range(1000))
    path = tmp_path / "corpus.txt.gz"
    path.write_bytes(gzip.compress(text.encode()))
    data = read_data(path)
    parts = [data.splits[part].inputs[0] for part in PARTS]
    assert "".join(parts) == text
    assert all(part.endswith("\n") for part in parts)
    assert [round(len(part) / len(text), 2) for part in parts] == [0.8, 0.1, 0.1]
    assert data.labels is None


def test_labels_can_be_ignored_and_blank_lines_of_text_are_passed_over(tmp_path):
    rows = [*ROWS, {"text": " ", "label": "no"}]
    data = read_data(write(tmp_path / "d.jsonl", rows), labelled=False)
    assert data.labels is None
    assert sum(map(len, data.splits.values())) == 60
    assert read_data(None, labelled=False).splits["train"].labels is None


def test_embedded_set_keeps_the_module_of_each_docstring():
    data = read_data(None)
    groups = [set(data.splits[part].groups) for part in PARTS]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert all(file.endswith(".py") for found in groups for file in found)
    one = data.splits["test"].take([3])
    assert one.groups == data.splits["test"].groups[3:4]


def test_limits_keep_the_shares_of_the_labels():
    labels = [0] * 70 + [1] * 20 + [2] * 10
    splits = {part: Split([f"{part}{i}" for i in range(100)], labels) for part in PARTS}
    notes: list[str] = []
    kept = limit(splits, {"train": 20, "test": 500}, 0, notes)
    assert Counter(kept["train"].labels) == {0: 14, 1: 4, 2: 2}
    assert kept["test"] == splits["test"]
    assert notes == ["train: 20 of 100 examples"]
    assert Counter(limit(splits, {"train": 1}, 0, notes)["train"].labels) == {0: 1, 1: 1, 2: 1}
    assert kept["train"] == limit(splits, {"train": 20}, 0, notes)["train"]
    for bad in ({"train": 0}, {"dev": 5}):
        with pytest.raises(InputError, match="--limit"):
            limit(splits, bad, 0, notes)


def test_sample_draws_distinct_indices_in_order():
    drawn = sample([i % 7 for i in range(500)], 500, 123, seed=3)
    assert len(drawn) == 123
    assert drawn == sorted(set(drawn))


def test_hub_name_with_a_configuration(monkeypatch):
    import datasets
    import huggingface_hub

    asked = []

    def load_dataset(name: str, config: str | None) -> dict[str, datasets.Dataset]:
        asked.append((name, config))
        return {"train": datasets.Dataset.from_list(ROWS), "unsupervised": datasets.Dataset.from_list(ROWS)}

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: "")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = read_data("owner/name:config")
    assert asked == [("owner/name", "config")]
    assert sum(map(len, data.splits.values())) == len(ROWS)


# ---- what is refused


def test_no_such_path(tmp_path):
    refuse(tmp_path / "nothing.csv", "--data", "nothing.csv", "no such file")
    refuse("some/where/deep", "no such file")


def test_hub_name_without_network():
    refuse("nobody/nothing-of-that-name", "nobody/nothing-of-that-name", "needs network")


def test_directory_without_data(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    refuse(tmp_path, str(tmp_path), "notes.md", "name one file")


@pytest.mark.parametrize(
    ("name", "content"), [("d.csv", "text,label\n"), ("d.jsonl", "\n"), ("d.json", "[]")]
)
def test_empty(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    refuse(tmp_path / name, name, "no rows")
    (tmp_path / name).write_text("")
    refuse(tmp_path / name, name, "empty")


def test_unknown_ending(tmp_path):
    (tmp_path / "d.xlsx").write_bytes(b"x")
    refuse(tmp_path / "d.xlsx", "d.xlsx", ".parquet")


def test_text_column_that_is_not_there(tmp_path):
    path = write(tmp_path / "d.csv")
    refuse(path, "--text-column", "body", "text, label", text_column="body")
    refuse(path, "--label-column", "mood", "text, label", label_column="mood")
    refuse(path, "--text-column", "two joined", text_column="a,b,c")


def test_columns_that_cannot_be_told(tmp_path):
    path = write(tmp_path / "d.csv", [{"left": "a", "right": "b", "z": "c"}] * 4)
    refuse(path, "--text-column", "left, right, z")
    refuse(path, "--label-column", "left, right, z", labelled=True, text_column="left")


def test_label_missing_from_one_split(tmp_path):
    write(tmp_path / "train.csv", ROWS[:30])
    write(tmp_path / "validation.csv", ROWS[30:45])
    write(tmp_path / "test.csv", [{"text": f"t{i}", "label": "no"} for i in range(9)])
    refuse(tmp_path, "'yes'", "missing from the test split", "train has it")


def test_label_that_training_never_shows(tmp_path):
    write(tmp_path / "train.csv", ROWS[:40])
    write(tmp_path / "test.csv", [*ROWS[40:], {"text": "new", "label": "maybe"}])
    refuse(tmp_path, "'maybe'", "missing from the train split", "test has it")


def test_label_column_missing_from_one_split(tmp_path):
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "test.csv", [{"text": "t"}] * 9)
    refuse(tmp_path, "--label-column", "test split", "test.csv")


def test_label_too_rare_to_split(tmp_path):
    refuse(write(tmp_path / "d.csv", [*ROWS, {"text": "t", "label": "rare"}]), "'rare'", "3 are needed")


def test_one_class_only(tmp_path):
    refuse(write(tmp_path / "d.csv", [{"text": f"t{i}", "label": 1} for i in range(9)]), "'1'", "two classes")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_measurements_for_labels(tmp_path, ending):
    rows = [{"text": f"t{i}", "label": i / 4} for i in range(20)]
    path = write(tmp_path / f"d.{ending}", rows)
    assert read_data(path).target == "numbers"
    refuse(path, "0.25", "--kind regression", "--label-column", target="classes", labelled=True)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_cells_name_row_and_column(tmp_path, missing):
    rows = [dict(row) for row in ROWS]
    rows[6]["text"] = missing
    refuse(write(tmp_path / "a.jsonl", rows), "a.jsonl", "row 7", "column text", "missing")
    rows = [dict(row) for row in ROWS]
    rows[4]["label"] = missing
    refuse(write(tmp_path / "b.jsonl", rows), "b.jsonl", "row 5", "label is missing")


def test_missing_cells_of_csv(tmp_path):
    (tmp_path / "d.csv").write_text("text,label\na,1\nb,0\n ,1\n")
    refuse(tmp_path / "d.csv", "row 3", "column text")
    (tmp_path / "d.csv").write_text("text,label\na,1\nb,\nc,1\n")
    refuse(tmp_path / "d.csv", "row 2", "label is missing")


def test_cells_of_the_wrong_type(tmp_path):
    refuse(write(tmp_path / "d.jsonl", [{"text": 5, "label": 1}] * 3), "row 1", "column text", "not text")
    rows = [{"text": "t", "label": [1, 2]}] * 3
    refuse(write(tmp_path / "e.jsonl", rows), "lists of labels", "--kind multi-label", target="classes")
    rows = [{"text": "t", "label": {"a": 1}}] * 3
    refuse(write(tmp_path / "f.jsonl", rows), "row 1", "is not one class")


def test_truncated_csv_names_the_line(tmp_path):
    path = write(tmp_path / "d.csv")
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b",") + 3])  # inside the last quoted field
    refuse(path, "d.csv", "line 61", "truncated")
    path.write_bytes(content[: content.rindex(b",")])
    refuse(path, "d.csv", "line 61", "1 fields where the header has 2")


def test_truncated_json_names_the_line(tmp_path):
    for name in ("d.jsonl", "d.json"):
        path = write(tmp_path / name)
        path.write_bytes(path.read_bytes()[:-9])
        refuse(path, name, "line 60" if name == "d.jsonl" else "line 1", "truncated")


def test_truncated_parquet_and_gzip(tmp_path):
    for name in ("d.parquet", "d.csv.gz"):
        path = write(tmp_path / name)
        path.write_bytes(path.read_bytes()[:-20])
        refuse(path, name, "truncated")
    path = write(tmp_path / "e.parquet")
    content = bytearray(path.read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    content[footer : footer + 40] = bytes(40)
    path.write_bytes(content)
    refuse(path, "e.parquet", "damaged")


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("d.csv", PNG, "a PNG image"),
        ("d.jsonl", b"PAR1" + bytes(40), "a Parquet file"),
        ("d.txt", bytes(40), "binary data"),
        ("d.csv", b'{"text": "a", "label": 1}\n', "JSON"),
        ("d.parquet", b"text,label\na,1\n", "something else than a Parquet file"),
        ("d.csv.gz", b"text,label\na,1\n", "something else than a gzip archive"),
        ("d.npz", b"text,label\na,1\n", "something else than a ZIP or .npz archive"),
    ],
)
def test_content_that_is_not_what_the_ending_says(tmp_path, name, content, found):
    (tmp_path / name).write_bytes(content)
    refuse(tmp_path / name, name, "not what its ending says", found)


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "d.csv").write_bytes("text,label\nfüße,1\n".encode("latin-1"))
    refuse(tmp_path / "d.csv", "d.csv", "UTF-8")


def test_header_that_repeats_a_column(tmp_path):
    (tmp_path / "d.csv").write_text("text,text\na,b\n")
    refuse(tmp_path / "d.csv", "twice", "text, text")


def test_json_of_another_shape(tmp_path):
    (tmp_path / "d.json").write_text('{"text": ["a", "b"], "label": [1]}')
    refuse(tmp_path / "d.json", "d.json", "equal length")
    (tmp_path / "d.jsonl").write_text("[1, 2]\n")
    refuse(tmp_path / "d.jsonl", "line 1", "not an object")


def test_quotes_and_line_ends_inside_csv_fields(tmp_path):
    texts = ['he said "no"', "two\nlines", "a, b", "plain"] * 5
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *([f"{i} {t}", i % 2] for i, t in enumerate(texts))])
    found = [text for split in read_data(tmp_path / "d.csv").splits.values() for text in split.inputs]
    assert sorted(found) == sorted(f"{i} {t}" for i, t in enumerate(texts))


def test_tsv_fields_hold_quotes_as_they_stand(tmp_path):
    rows = [{"text": f'"unclosed {i}', "label": i % 2} for i in range(20)]
    found = [t for split in read_data(write(tmp_path / "d.tsv", rows)).splits.values() for t in split.inputs]
    assert sorted(found) == sorted(row["text"] for row in rows)


def test_complete_does_not_change_what_it_is_given():
    splits = {"train": Split([f"t{i}" for i in range(20)], [i % 2 for i in range(20)])}
    complete(splits, ["a", "b"], 0, [])
    assert list(splits) == ["train"]
    assert len(splits["train"]) == 20


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["1", "1.0", "01", "2"], ["1", "2"]),
        ([1, 1.0, "01", 2], ["1", "2"]),
        (["True", "true", "false", "True"], ["True", "false"]),
        (["pos", " pos", "pos\u00a0", "neg"], ["neg", "pos"]),
        (["caf\u00e9", "cafe\u0301", "the", "caf\u00e9 "], ["caf\u00e9", "the"]),
    ],
)
def test_labels_that_read_alike_are_one_class(tmp_path, values, names):
    rows = [{"text": f"t{i}", "label": values[i % 4]} for i in range(40)]
    data = read_data(write(tmp_path / "d.jsonl", rows))
    assert sorted(data.labels) == sorted(names)
    assert sum(note.startswith("labels written in several ways are one class: ") for note in data.notes) == 1


@pytest.mark.parametrize(
    "values",
    [
        ["01", "1", "a", "A"],  # one is no number, so the others are names
        ["1_0", "10", "2_0", "20"],  # Python alone takes the first for 10
    ],
)
def test_labels_that_differ_stay_apart(tmp_path, values):
    rows = [{"text": f"t{i}", "label": values[i % 4]} for i in range(40)]
    data = read_data(write(tmp_path / "d.jsonl", rows))
    assert sorted(data.labels) == sorted(values)
    assert not any("several ways" in note for note in data.notes)
