"""The corpus: what is read, how it is split and stored, what is refused; the standard library as a corpus."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eckart.data.stdlib_source import stdlib_sources
from eckart.errors import InputError
from eckart.jobs.pretrain.corpus import (
    HELD_OUT,
    SPLITS,
    Stored,
    TokenStore,
    bits_per_byte,
    encode,
    read_stored,
    split_of,
    train_tokenizer,
)
from eckart.jobs.pretrain.documents import documents


def test_text_json_lines_and_parquet_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("two")
    (tmp_path / "a.md").write_text("one")
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    (tmp_path / "z.jsonl").write_text('{"text": "three"}\n{"text": null}\n')
    pq.write_table(pa.table({"text": ["four", None], "n": [1, 2]}), tmp_path / "zz.parquet")
    found = list(documents(str(tmp_path)))
    assert found == [
        ("a.md", "one"),
        ("sub/b.txt", "two"),
        ("z.jsonl#0", "three"),
        ("z.jsonl#1", ""),
        ("zz.parquet#0", "four"),
        ("zz.parquet#1", ""),
    ]
    assert list(documents(str(tmp_path / "a.md"))) == [("a.md", "one")]


def test_a_file_alone_and_a_large_one_are_cut_at_line_ends(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(20_000))
    (tmp_path / "a.txt").write_text(text)
    alone = list(documents(str(tmp_path / "a.txt")))
    assert 300 < len(alone) <= 500 and "".join(piece for _, piece in alone) == text
    assert [name for name, _ in alone[:2]] == ["a.txt", "a.txt#1"]
    assert all(piece.endswith("\n") for _, piece in alone)
    assert {split_of(name) for name, _ in alone} == {"train", "validation", "test"}
    assert list(documents(str(tmp_path))) == [("a.txt", text)], "below 1 MiB: a document"
    long = "x" * (2**20 + 7)
    (tmp_path / "a.txt").write_text(f"{long}\n{text}")
    (tmp_path / "b.txt").mkdir()
    found = list(documents(str(tmp_path)))
    assert [name for name, _ in found] == ["a.txt", "a.txt#1"]
    assert [piece for _, piece in found] == [long[: 2**20], f"{long[2**20 :]}\n{text}"]


def test_documents_are_read_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    found = documents(str(tmp_path))
    assert next(found)[1] == "one"
    with pytest.raises(InputError, match=r"b\.txt: not UTF-8 text"):
        next(found)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1.0, math.nan], "row 0: nan is no token id"),
        ([1.5], r"row 0: 1\.5 is no token id"),
        ([-1.0], r"row 0: -1\.0 is no token id"),
        ([math.inf], "row 0: inf is no token id"),
    ],
)
def test_ids_that_are_no_whole_numbers_are_refused(ids: list[float], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"ids": [ids]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message):
        list(documents(str(tmp_path), "ids"))


def test_columns_and_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"words": ["a"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"--column text: .*a\.parquet has the columns words, n"):
        list(documents(str(tmp_path)))
    with pytest.raises(InputError, match="row 0: 1 is neither text nor a list of token ids"):
        list(documents(str(tmp_path), "n"))
    (tmp_path / "c.parquet").write_bytes(b"PAR1" + b"x" * 100)
    with pytest.raises(InputError, match=r"c\.parquet: no Parquet file, or a damaged one"):
        list(documents(str(tmp_path / "c.parquet")))
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n\n{"text": "\\ud800"}\n')
    with pytest.raises(InputError, match=r"c\.jsonl, row 2: no text that UTF-8 can hold"):
        list(documents(str(tmp_path / "c.jsonl")))
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n[]\n')
    with pytest.raises(InputError, match=r"row 1: a line is no JSON object with 'text'"):
        list(documents(str(tmp_path / "b.jsonl")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no file there ends in \.txt"):
        list(documents(str(tmp_path / "empty")))


def test_splits_follow_the_names_in_their_shares() -> None:
    names = [f"document {i}" for i in range(4000)]
    shares = {split: sum(split_of(name) == split for name in names) / 4000 for split in SPLITS}
    for split, share in HELD_OUT.items():
        assert abs(shares[split] - share) < 0.015
    assert [split_of(n) for n in names[:50]] == [split_of(n) for n in names[:50]]


def test_stored_tokens_come_back_as_sequences(tmp_path: Path) -> None:
    texts = [(f"{i}", f"print({i})\n" * 3) for i in range(300)]
    tokenizer = train_tokenizer((text for _, text in texts), 270)
    stored = encode(texts, tokenizer, tmp_path)
    assert read_stored(tmp_path) == stored and not list(tmp_path.glob("*.partial"))
    wanted: list[int] = []
    for name, text in texts:
        if split_of(name) == "validation":
            wanted += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    store = TokenStore(tmp_path / "validation.safetensors", 7)
    assert store.tokens == len(wanted) == stored["validation"].tokens
    assert len(store) == len(wanted) // 7
    joined = torch.cat([store[i]["input_ids"] for i in range(len(store))])
    assert joined.tolist() == wanted[: 7 * len(store)]
    assert torch.equal(store[2]["labels"], store[2]["input_ids"])
    with pytest.raises(IndexError):
        store[len(store)]
    assert sum(one.bytes for one in stored.values()) == sum(len(text) for _, text in texts)
    assert tokenizer.decode(tokenizer("é\n\tx")["input_ids"]) == "é\n\tx"
    assert encode(texts, tokenizer, tmp_path / "again")["train"].fingerprint == stored["train"].fingerprint
    with pytest.raises(InputError, match="shorter than one sequence of 99,999"):
        TokenStore(tmp_path / "validation.safetensors", 99_999)


def test_ids_are_stored_as_they_are_and_one_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["abc"], 258)
    ids = [(f"{i}", [1, 2, 3]) for i in range(300)]
    stored = encode(ids, tokenizer, tmp_path)
    assert stored["train"].tokens == 4 * stored["train"].documents
    store = TokenStore(tmp_path / "train.safetensors", 4)
    assert store[0]["input_ids"].tolist() == [1, 2, 3, tokenizer.eos_token_id]
    with pytest.raises(InputError, match="token id 258 is beyond the tokenizer's vocabulary of"):
        encode([("x", [1, 258])], tokenizer, tmp_path / "b")
    with pytest.raises(InputError, match=r"no document fell to the .* split"):
        encode(ids[:1], tokenizer, tmp_path / "c")


def test_bits_per_byte() -> None:
    assert math.isclose(bits_per_byte(math.log(4), Stored(1, 30, 60, "")), 1.0)


def test_the_standard_library_without_its_near_duplicates(tmp_path: Path) -> None:
    body = [f"value_{i} = compute({i})" for i in range(100)]
    (tmp_path / "pkg" / "tests").mkdir(parents=True)
    (tmp_path / "a.py").write_text("\n".join(body))
    (tmp_path / "b.py").write_text("\n".join([*body[:95], *(f"other_{i} = {i}" for i in range(5))]))
    (tmp_path / "c.py").write_text("\n".join([*body[:50], *(f"other_{i} = {i}" for i in range(50))]))
    (tmp_path / "pkg" / "tests" / "t.py").write_text("x = 1000000")
    (tmp_path / "pkg" / "empty.py").write_text("\n")
    (tmp_path / "pkg" / "latin.py").write_bytes(b"# \xe9")
    assert [name for name, _ in stdlib_sources(tmp_path)] == ["a.py", "c.py"]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no sources of the standard library"):
        list(stdlib_sources(tmp_path / "none"))


def test_corpus_json_holds_counts(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["abc"], 258)
    encode([(f"{i}", "abc") for i in range(200)], tokenizer, tmp_path)
    found = json.loads((tmp_path / "corpus.json").read_text())
    assert sum(split["documents"] for split in found.values()) == 200
