"""Labels: classes, numbers, several of one example; and what is refused or said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eckart.data.labels import CLASSES, NUMBERS, SEVERAL, outnumbered
from eckart.data.read import CHAT, read_data
from eckart.errors import InputError


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(path: Path, label: Any, name: str = "label") -> Path:
    return save(path, [{"text": f"text {i}", name: label(i)} for i in range(60)])


def refuse(source: Path, *words: str, **options: Any) -> None:
    with pytest.raises(InputError) as caught:
        read_data(source, **options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_numbers_with_a_fraction_are_to_be_predicted_and_it_is_said(tmp_path: Path) -> None:
    data = read_data(labelled(tmp_path / "d.jsonl", lambda i: i / 4))
    assert (data.target, data.labels) == (NUMBERS, None)
    assert sorted(x for split in data.splits.values() for x in split.labels or ()) == [
        i / 4 for i in range(60)
    ]
    assert any("--kind regression says so" in note for note in data.notes)
    said = read_data(labelled(tmp_path / "d.jsonl", lambda i: i), target=NUMBERS, labelled=True)
    assert said.target == NUMBERS and not any("fraction" in note for note in said.notes)
    refuse(tmp_path / "d.jsonl", "3 are needed", "--kind regression")
    refuse(
        labelled(tmp_path / "e.jsonl", lambda i: i / 4),
        "0.25",
        "--kind regression",
        target=CLASSES,
        labelled=True,
    )
    refuse(
        labelled(tmp_path / "f.jsonl", lambda i: "ab"[i % 2]),
        "'a' is no number",
        target=NUMBERS,
        labelled=True,
    )
    refuse(labelled(tmp_path / "g.jsonl", lambda i: 2.5), "same number")
    refuse(labelled(tmp_path / "h.jsonl", lambda i: "inf" if i else "0.5"), "'inf' is no number")


def test_many_whole_numbers_may_be_a_score_and_it_is_said(tmp_path: Path) -> None:
    few = read_data(labelled(tmp_path / "few.jsonl", lambda i: i % 3))
    assert not any("score" in note for note in few.notes)
    rows = [{"text": f"text {i}", "label": i % 11} for i in range(330)]
    many = read_data(save(tmp_path / "many.jsonl", rows))
    assert many.target == CLASSES
    assert any("11 whole numbers" in note and "--kind regression" in note for note in many.notes)


def test_a_column_named_score_is_asked_about(tmp_path: Path) -> None:
    path = labelled(tmp_path / "d.jsonl", lambda i: i / 4, "score")
    refuse(path, "column score may be a label", "--label-column score", "--kind causal-lm")
    assert read_data(path, label_column="score").target == NUMBERS
    assert read_data(path, labelled=True, target=NUMBERS).columns == ["text", "score"]
    assert read_data(path, labelled=False).target is None


def test_several_labels_as_lists_or_as_columns(tmp_path: Path) -> None:
    lists = labelled(
        tmp_path / "d.jsonl", lambda i: [name for k, name in enumerate("abc") if i % (k + 2) == 0]
    )
    data = read_data(lists)
    assert (data.target, data.labels) == (SEVERAL, ["a", "b", "c"])
    rows = [
        {"text": f"text {i}", **{name: int(i % (k + 2) == 0) for k, name in enumerate("abc")}}
        for i in range(60)
    ]
    columns = read_data(save(tmp_path / "e.jsonl", rows), label_column="a,b, c", text_column="text")
    for part, split in data.splits.items():
        assert columns.splits[part].labels == split.labels
        assert split.labels == [
            [int(int(text.split()[1]) % (k + 2) == 0) for k in range(3)] for text in split.inputs
        ]
    refuse(lists, "lists of labels", "--kind multi-label", target=CLASSES, labelled=True)
    one = labelled(tmp_path / "f.jsonl", lambda i: i % 2)
    refuse(one, "one label each", target=SEVERAL, labelled=True)
    odd = save(tmp_path / "odd.jsonl", [{"text": "t", "a": 1, "b": 3}] * 9)
    refuse(odd, "row 1, column b", "0 or 1", "3", label_column="a,b")
    refuse(labelled(tmp_path / "g.jsonl", lambda i: ["a"] if i else "a"), "single labels and lists")
    refuse(labelled(tmp_path / "h.jsonl", lambda i: ["a"]), "at least two are needed")
    refuse(labelled(tmp_path / "i.jsonl", lambda i: ["a", None]), "row 1")


def test_imbalance_is_said() -> None:
    assert outnumbered(["a", "b"], [0] * 6 + [1] * 4) == ""
    assert "80% of the examples are b, 20% a" in outnumbered(["a", "b"], [1] * 8 + [0] * 2)


def test_columns_that_are_not_used_are_named(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": i % 2, "when": i} for i in range(60)]
    assert "columns that are not used: when" in read_data(save(tmp_path / "d.jsonl", rows)).notes


@pytest.mark.parametrize(
    ("row", "asked", "answer"),
    [
        ({"prompt": "p", "completion": "c"}, "p", "c"),
        ({"instruction": "do", "input": "this", "output": "done"}, "do\n\nthis", "done"),
        ({"instruction": "do", "input": "", "output": "done"}, "do", "done"),
        ({"question": "q", "answer": "a"}, "q", "a"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "q", "a"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "q", "a"),
        (
            {
                "prompt": [{"role": "user", "content": "p"}],
                "completion": [{"role": "assistant", "content": "c"}],
            },
            "p",
            "c",
        ),
    ],
)
def test_conversations(tmp_path: Path, row: dict[str, Any], asked: str, answer: str) -> None:
    data = read_data(save(tmp_path / "d.jsonl", [{**row, "n": i} for i in range(30)]))
    assert (data.kind, data.target, data.labels) == (CHAT, CHAT, None)
    assert data.splits["train"].inputs[0] == [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": answer},
    ]
    assert [len(split) for split in data.splits.values()] == [24, 3, 3]


def test_conversations_that_are_refused(tmp_path: Path) -> None:
    def rows(**row: Any) -> Path:
        return save(tmp_path / "d.jsonl", [row] * 30)

    refuse(rows(question="q", answer=None), "row 1, column answer", "missing")
    refuse(rows(question="q", answer=" "), "missing")
    refuse(rows(question="q", answer=3), "3 is not text")
    refuse(rows(messages=[{"role": "user", "content": "q"}]), "does not end with the assistant")
    refuse(rows(messages=[{"role": "tool", "content": "q"}]), "its role is one of")
    refuse(rows(text="q"), "no column of messages", "question/answer", target=CHAT)
    refuse(rows(a="q", b="x"), "one column of messages, or two", target=CHAT, text_column="a")
    named = read_data(rows(a="q", b="x"), target=CHAT, text_column="a,b")
    assert named.splits["train"].inputs[0][1]["content"] == "x"
    labelled_pairs = [{"question": f"q{i}", "answer": "a", "label": i % 2} for i in range(60)]
    assert read_data(save(tmp_path / "e.jsonl", labelled_pairs)).target == CLASSES
    assert read_data(rows(question="q", answer="a"), labelled=False).splits["train"].inputs[0] == "q\na"
