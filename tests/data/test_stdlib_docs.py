"""The embedded text set: whole, without duplicates, split by file, the same every time."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from eckart.data.stdlib_docs import ACTS, RETURNS, deal_modules, stdlib_docstrings, what_it_does
from eckart.errors import InputError

PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def splits():
    return stdlib_docstrings()


def library(root: Path, modules: dict[str, list[tuple[str, str]]]) -> Path:
    """A standard library in small: module path -> docstrings and bodies of its functions."""
    for name, functions in modules.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "\n".join(f"def f{i}():\n    {doc!r}\n    {body}" for i, (doc, body) in enumerate(functions))
        )
    return root


def both(name: str, count: int = 2) -> list[tuple[str, str]]:
    return [
        pair
        for i in range(count)
        for pair in ((f"{name} gives {i}", "return 1"), (f"{name} does {i}", "f()"))
    ]


@pytest.mark.parametrize(
    ("body", "label"),
    [
        ("return x", RETURNS),
        ("return 0", RETURNS),
        ("yield x", RETURNS),
        ("yield from x", RETURNS),
        ("if a:\n        return b", RETURNS),
        ("return", ACTS),
        ("return None", ACTS),
        ("self.x = 1", ACTS),
        ("def inner():\n        return 1\n    inner()", ACTS),
        ("x = lambda: (yield)", ACTS),
        ("class A:\n        def f(self): return 1", ACTS),
        ("pass", None),
        ("raise NotImplementedError", None),
        ("...", None),
        ("'more text'", None),
    ],
)
def test_labels_are_read_from_the_functions_own_body(body: str, label: str | None) -> None:
    function = ast.parse(f'def f(x):\n    "What it does."\n    {body}').body[0]
    assert what_it_does(function) == label


def test_both_labels_are_in_every_split(splits):
    labels = {part: {d.label for d in splits[part]} for part in PARTS}
    assert all(found == {RETURNS, ACTS} for found in labels.values())
    for part in PARTS:
        share = sum(d.label == RETURNS for d in splits[part]) / len(splits[part])
        assert share == pytest.approx(0.5, abs=0.01), "neither label is the answer by itself"
    assert sum(map(len, splits.values())) > 3500


def test_no_module_and_no_text_is_in_two_splits(splits):
    modules = [{d.module for d in splits[part]} for part in PARTS]
    texts = [{" ".join(d.text.casefold().split()) for d in splits[part]} for part in PARTS]
    for sets in (modules, texts):
        assert sum(map(len, sets)) == len(set.union(*sets))
    assert sum(map(len, texts)) == sum(map(len, splits.values()))


def test_shares_are_near_what_was_asked(splits):
    total = sum(map(len, splits.values()))
    assert 0.5 < len(splits["train"]) / total < 0.65
    assert 0.05 < len(splits["validation"]) / total < 0.15
    assert 0.25 < len(splits["test"]) / total < 0.4


def test_sources_are_read_not_imported_and_tests_are_left_out(splits):
    assert not any({"test", "tests", "idle_test"} & set(Path(d.module).parts) for d in splits["train"])
    assert "idlelib.editor" not in sys.modules


def test_same_set_every_time(splits):
    assert stdlib_docstrings.__wrapped__() == splits


def test_repeated_docstrings_are_kept_once_and_those_of_both_labels_dropped(tmp_path):
    modules = {f"m{i}.py": both(f"m{i}") for i in range(12)}
    modules["m0.py"] += [("Said  by both.", "return 1"), ("said by BOTH.", "f()")]
    modules["m1.py"] += [("said twice", "return 1"), ("Said\ntwice", "return 2"), ("once", "f()")]
    found = [d for docs in stdlib_docstrings(library(tmp_path, modules)).values() for d in docs]
    assert sorted(d.text for d in found if "said" in d.text.lower()) == ["said twice"]


def test_labels_are_evened_out_in_each_split(tmp_path):
    extra = [("gives again", "return 2"), ("gives once more", "return 3")]
    modules = {
        f"m{i}.py": [*both(f"m{i}"), *((f"m{i} {text}", body) for text, body in extra)] for i in range(12)
    }
    for docs in stdlib_docstrings(library(tmp_path, modules)).values():
        labels = [d.label for d in docs]
        assert labels.count(RETURNS) == labels.count(ACTS) > 0


def test_dealing_leaves_no_split_empty_and_does_not_depend_on_order():
    sizes = {"a": 131, "b": 79, "c": 35}
    home = deal_modules(sizes)
    assert sorted(home.values()) == ["test", "train", "validation"]
    assert home["a"] == "train"
    assert deal_modules(dict(reversed(sizes.items()))) == home


def test_library_without_sources(tmp_path):
    with pytest.raises(InputError, match="no sources of the standard library"):
        stdlib_docstrings(tmp_path)
