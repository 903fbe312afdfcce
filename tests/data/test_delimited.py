"""Text files of fields in other dress: separators, no header, encodings; and what is wrong with one, by its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eckart.data.delimited import Format, read_delimited
from eckart.data.read import check_source, read_data
from eckart.errors import InputError

ROWS = [(f"Stra\u00dfe {i}", "neg" if i % 3 else "pos") for i in range(60)]


def write(path: Path, sep: str = ",", *, header: bool = True, encoding: str = "utf-8") -> Path:
    lines = [*([("text", "label")] if header else []), *ROWS]
    path.write_bytes("".join(sep.join(line) + "\n" for line in lines).encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "sep", "encoding", "header", "given"),
    [
        ("u.data", "\t", "utf-8", False, {"sep": "tab", "columns": "text,label"}),
        (
            "reviews.dat",
            "::",
            "latin-1",
            False,
            {"sep": "::", "columns": "text, label", "encoding": "latin-1"},
        ),
        ("a.csv", ";", "utf-8", True, {"sep": ";"}),
        ("a.csv", ",", "utf-8", False, {"columns": "text,label"}),
        ("a.tsv", "\t", "cp1252", True, {"encoding": "cp1252"}),
        ("a.csv", ",", "utf-16", True, {"encoding": "utf-16"}),
        ("a.txt", "|", "utf-8", True, {"sep": "|"}),
        ("noending", "\t", "utf-8", True, {"sep": "\\t"}),
    ],
)
def test_a_table_in_other_dress_is_the_same_data(
    tmp_path: Path, name: str, sep: str, encoding: str, header: bool, given: dict[str, str]
) -> None:
    plain = read_data(write(tmp_path / "plain.csv"))
    other = read_data(write(tmp_path / name, sep, header=header, encoding=encoding), **given)
    assert other.digest() == plain.digest()


def test_files_by_split_are_all_read_so(tmp_path: Path) -> None:
    for part in ("train", "validation", "test"):
        write(tmp_path / f"{part}.dat", ";", encoding="latin-1")
    data = read_data(tmp_path, sep=";", encoding="latin-1")
    assert [len(split) for split in data.splits.values()] == [60, 60, 60]
    assert sorted(data.splits["test"].inputs) == sorted(text for text, _ in ROWS)


@pytest.mark.parametrize(
    ("content", "given", "message"),
    [
        ("text;label\na;b\n", {}, r"line 1: the header is one field, 'text;label': .* such as --sep ';'"),
        ("text\tlabel\na\tb\n", {}, r"line 1: the header is one field, .* such as --sep tab"),
        ("text;label\na;b\n", {"sep": "::"}, r"line 1: the header is one field, .* such as --sep ';'"),
        (
            "a,b\nc,d\n",
            {"columns": "text"},
            r"line 1: 2 fields where --columns names 1 \(another --sep than ','",
        ),
        ("a,b\n\nc,d,e\n", {"columns": "text,label"}, "line 3: 3 fields where --columns names 2"),
        ("a\tb\n\t\t\n", {"sep": "tab"}, "line 2: 3 fields where the header has 2"),
        ("a,b", {"sep": ""}, "--sep is ''"),
        ("a,b", {"sep": '"'}, "--sep is "),
        ("a,b", {"columns": "a,,b"}, "--columns 'a,,b': give a name for each column"),
        ("a,b", {"columns": "a, a"}, "--columns 'a, a': give a name for each column"),
        ("a,b", {"encoding": "latin-0"}, "--encoding 'latin-0' is not known"),
        ("a, a\n1,2\n", {}, "the header names a column twice: a, a"),
        ("text,label\n\u00e9,1\n", {"encoding": "ascii"}, "is not ascii text .* another --encoding"),
    ],
)
def test_what_is_wrong_is_said_by_its_line(
    tmp_path: Path, content: str, given: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_delimited(tmp_path / "a.csv", Format(**given))
    assert "\n" not in str(caught.value)


def test_what_is_no_text_file_has_no_separator(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a", "label": 1}]')
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 2, 2), np.uint8), labels=np.arange(4))
    for kind in "ab":
        (tmp_path / "images" / kind).mkdir(parents=True)
        Image.new("L", (2, 2)).save(tmp_path / "images" / kind / "1.png")
    for name, what in (
        ("a.json", "a .json file"),
        ("a.npz", "none"),
        ("images", "a directory that holds none named by split"),
    ):
        with pytest.raises(
            InputError, match=f"--sep, --columns and --encoding are for text files, .* is {what}"
        ):
            read_data(tmp_path / name, sep=";")
    with pytest.raises(InputError, match="are for text files, and what is read without --data is none"):
        check_source(None, {"encoding": "latin-1"})
    with pytest.raises(InputError, match="are for text files, and what is read without --data is none"):
        read_data(None, sep=";")


def test_the_label_that_is_missing_has_a_row_and_a_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,mood\na,1\nb,\n")
    with pytest.raises(InputError, match=r"a\.csv, row 2, column mood: the label is missing"):
        read_data(tmp_path / "a.csv", label_column="mood")
