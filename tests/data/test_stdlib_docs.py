"""The embedded text set: whole, without duplicates, split by module, the same every time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from eckart.data.stdlib_docs import PACKAGES, deal_modules, stdlib_docstrings
from eckart.errors import InputError

PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def splits():
    return stdlib_docstrings()


def library(root: Path, modules: dict[str, list[str]]) -> Path:
    """A standard library in small: module path -> docstrings of its functions."""
    for name, docs in modules.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text("\n".join(f"def f{i}():\n    {doc!r}" for i, doc in enumerate(docs)))
    return root


def test_twelve_packages_each_in_every_split(splits):
    labels = {part: {d.package for d in splits[part]} for part in PARTS}
    assert len(labels["train"]) == PACKAGES
    assert labels["train"] == labels["validation"] == labels["test"]
    assert sum(map(len, splits.values())) > 2500


def test_no_module_and_no_text_is_in_two_splits(splits):
    modules = [{d.module for d in splits[part]} for part in PARTS]
    texts = [{" ".join(d.text.casefold().split()) for d in splits[part]} for part in PARTS]
    for sets in (modules, texts):
        assert sum(map(len, sets)) == len(set.union(*sets))
    assert sum(map(len, texts)) == sum(map(len, splits.values()))


def test_shares_are_near_what_was_asked(splits):
    total = sum(map(len, splits.values()))
    assert 0.6 < len(splits["train"]) / total < 0.72
    assert 0.1 < len(splits["validation"]) / total < 0.2
    assert 0.15 < len(splits["test"]) / total < 0.25


def test_sources_are_read_not_imported_and_tests_are_left_out(splits):
    assert not any({"test", "tests", "idle_test"} & set(Path(d.module).parts) for d in splits["train"])
    assert "idlelib.editor" not in sys.modules


def test_same_set_every_time(splits):
    assert stdlib_docstrings.__wrapped__() == splits


def test_shared_docstrings_are_dropped_and_repeated_ones_kept_once(tmp_path):
    modules = {f"{p}/m{i}.py": [f"{p} text {i}"] for p in ("one", "two") for i in range(3)}
    modules["one/m0.py"] += ["Said  by both.", "said twice", "Said\ntwice"]
    modules["two/m0.py"] += ["said by BOTH."]
    found = [d for docs in stdlib_docstrings(library(tmp_path, modules)).values() for d in docs]
    assert sorted(d.text for d in found if "said" in d.text.lower()) == ["said twice"]
    assert len(found) == 7


def test_largest_packages_are_taken_and_small_ones_are_not(tmp_path):
    modules = {f"big/m{i}.py": [f"big {i} {j}" for j in range(4)] for i in range(3)}
    modules |= {f"mid/m{i}.py": [f"mid {i} {j}" for j in range(3)] for i in range(3)}
    modules |= {f"low/m{i}.py": [f"low {i}"] for i in range(3)}
    modules |= {f"two/m{i}.py": [f"two {i} {j}" for j in range(9)] for i in range(2)}
    modules |= {f"site-packages/m{i}.py": [f"site {i} {j}" for j in range(9)] for i in range(3)}
    found = stdlib_docstrings(library(tmp_path, modules), packages=2)
    assert {d.package for d in found["train"]} == {"big", "mid"}


def test_dealing_leaves_no_split_empty_and_does_not_depend_on_order():
    sizes = {"a": 131, "b": 79, "c": 35}
    home = deal_modules(sizes)
    assert sorted(home.values()) == ["test", "train", "validation"]
    assert home["a"] == "train"
    assert deal_modules(dict(reversed(sizes.items()))) == home


def test_library_without_sources(tmp_path):
    with pytest.raises(InputError, match="no sources of the standard library"):
        stdlib_docstrings(tmp_path)
