"""Hostile names in every format that is written: they read as they are and do nothing."""

from __future__ import annotations

import ast
import csv
import io
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eckart.cli.console import show, table, tell_task
from eckart.compression._method import LayerRow
from eckart.compression._report import Report
from eckart.escapes import cell, cells, code, frame, html, markdown, named_cells, one_line, shell
from eckart.jobs.charts import svg
from eckart.jobs.federate.page import page

HOSTILE = (
    "a|b",
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "**bold** _it_ `code` ~~no~~ $x$",
    "# heading",
    "two\nlines\r\n| and | cells |\n```\n",
    "&lt; &amp;",
    "a\"b'c",
    "back\\slash",
    "\x1b[31mred\x1b[0m\x07",
    "right\u202eto left",
    "=HYPERLINK(1)",
    "caf\u00e9",
    "[/red] :smile:",
)


class Text(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_the_name(name: str) -> None:
    written = markdown(name)
    assert "\n" not in written and "\x1b" not in written and "\u202e" not in written and "<" not in written
    bare = written.replace("\\\\", "")
    for mark in "|`*_[]#$~":
        assert bare.count(mark) == bare.count(f"\\{mark}")
    shown = Text(written.replace("\\\\", "\0")).text.replace("\\", "").replace("\0", "\\")
    assert shown == " ".join(one_line(name).split())


@pytest.mark.parametrize("name", HOSTILE)
def test_code_and_shell_give_the_name_back(name: str) -> None:
    assert ast.literal_eval(code(name)) == name
    assert "\n" not in code(name) and "\u202e" not in code(name)
    word = shell(name)
    assert "\n" not in word
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, env={"LC_ALL": "C.UTF-8"})
    assert done.stdout == name.encode()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_page_shows_the_name(name: str) -> None:
    rows = [{"round": 0, "client": name, "score": 0.5, "error": 0.1, "refused": name}]
    found = Text(page(name, "accuracy", rows, rows))
    assert "script" not in found.tags
    assert "".join(name.split()) in "".join(found.text.split())
    assert Text(f'<p title="{html(name)}">').tags == ["p"]


def test_a_picture_shows_the_name() -> None:
    import altair

    name = "</text><script>alert(1)</script>"
    chart = altair.Chart(altair.Data(values=[{"x": name, "y": 1}])).mark_bar().encode(x="x:N", y="y:Q")
    assert "<script" not in svg(chart, name)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+49 30 1", "'+49 30 1"),
        ("-rm", "'-rm"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\n=1"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("-1.5", "-1.5"),
        ("+1e-3", "+1e-3"),
        (-1.5, -1.5),
        ("a=1", "a=1"),
        ("", ""),
        (None, None),
    ],
)
def test_a_cell_is_no_formula(value: Any, written: Any) -> None:
    assert cell(value) == written
    assert cells([value, "a"]) == [written, "a"]
    assert named_cells({"=a": value}) == {"=a": written}
    if isinstance(value, str):
        table = pd.DataFrame({"name": ["x", value], "number": [-1, 2.5]})
        assert frame(table)["name"].tolist() == ["x", written]
        assert table["name"].tolist() == ["x", value], "the table itself is as it was"
        text = io.StringIO(frame(table).to_csv(index=False), newline="")
        assert [row[0] for row in csv.reader(text)] == ["name", "x", written]


def test_ids_of_a_recovery_are_no_formulas(tmp_path: Path) -> None:
    from eckart.jobs.recover.recovering import complete

    users = ["=HYPERLINK(1)", "@me", "-5", "a", "b"]
    lines = [
        f"{user},{item},{(i * j) % 5}" for i, user in enumerate(users) for j, item in enumerate("xyz", 1)
    ]
    (tmp_path / "ratings.csv").write_text("user,item,rating\n" + "\n".join(lines) + "\n")
    complete(tmp_path / "ratings.csv", output=tmp_path / "out", rank=1, test_share=0)
    written = pd.read_csv(tmp_path / "out/users.csv", dtype=str)["name"].tolist()
    assert sorted(written) == sorted(["'=HYPERLINK(1)", "'@me", "-5", "a", "b"])


def test_a_card_of_a_compressed_model() -> None:
    row = LayerRow(*(1 for _ in LayerRow._fields))
    text = Report("svd", {"note": "a|b"}, 0.2, (row,), 10, 8, architecture="<x>").card({"data": "a|b\n# c"})
    assert "# &lt;x&gt;, compressed by svd" in text
    assert "| options | note='a\\|b' |" in text
    assert "| data | a\\|b \\# c |" in text


def test_a_terminal_shows_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table("name")
    for name in ("[/red] :smile:", "[bold]x"):
        rows.add_row(name)
        show(name)
    show(rows)
    show("a\nb\x1b[2J")
    task = {"kind": "k\x1b", "model": "m", "base_parameters": 3, "data": "d\nfake: line", "columns": [], "sizes": {},
            "label_counts": {}, "example": "e", "notes": [], "metric": "accuracy", "also": ["mcc", "auroc"],
            "dtype": "fp32", "device": "cpu\x1b", "quantize": None, "gradient_checkpointing": False,
            "gradient_accumulation": 1}  # fmt: skip
    tell_task(task)
    shown = capsys.readouterr()
    assert shown.out.count("[/red] :smile:") == 2 and shown.out.count("[bold]x") == 2
    assert "\x1b" not in shown.out + shown.err
    assert "data: d fake: line\n" in shown.err and "examples" not in shown.err
    assert "score: accuracy; beside it mcc, auroc\n" in shown.err
