"""Facts read from source: registration, inheritance over files, types by their names, and what cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from eckart._facts import Unreadable, module_file, package_files, read_methods

BASE = """
from dataclasses import dataclass
from typing import ClassVar
Route = Literal["a", "b"]

@dataclass
class Base:
    knob: ClassVar[str] = "k"
    route: Route = "a"
    seed: int = 0
"""
METHOD = '''
import torch_that_is_not_there

@registry.register_thing("one", title="One", paper="P", arxiv="1", trains="t", saves="s", aliases=["uno"])
@dataclass
class One(base.Base):
    """One.

    Not this.
    """
    seed: float = 1.0
    r: int | None = None

@register_thing("two", title="Two", paper="P", arxiv="2", trains="t", saves="s", knob="own")
class Two(One):
    """Two."""

@register_thing
class NotOne: ...

@other("three")
class NotTwo: ...
'''


def write(folder: Path, **files: str) -> list[Path]:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return [folder / f"{name}.py" for name in files]


def test_registered_classes_with_what_they_inherit(tmp_path: Path) -> None:
    (base,), files = write(tmp_path, base=BASE), write(tmp_path, method=METHOD)
    one, two = read_methods("things", files, [base])
    assert (one.info.slug, one.info.name, one.info.family, one.info.summary) == (
        "one",
        "One",
        "things",
        "One.",
    )
    assert (one.info.knob, one.aliases) == ("k", ("uno",))
    assert one.options == {"route": "Literal['a', 'b']", "seed": "float", "r": "int | None"}
    assert (two.info.knob, two.aliases, two.options) == ("own", (), one.options)


def test_a_base_that_no_file_tells_of_adds_nothing(tmp_path: Path) -> None:
    one, _ = read_methods("things", write(tmp_path, method=METHOD))
    assert (one.info.knob, set(one.options)) == ("r", {"seed", "r"})


@pytest.mark.parametrize("title", ['title="T" + "x"', "title=NAME"])
def test_what_is_no_literal_or_missing_is_named(tmp_path: Path, title: str) -> None:
    text = METHOD.replace('title="One"', title)
    with pytest.raises(Unreadable, match=r"method\.py: what One is registered with is no literal"):
        read_methods("things", write(tmp_path, method=text))


def test_lists_are_read_and_made_ones_are_left_to_the_classes(tmp_path: Path) -> None:
    fields = ("slug", "name", "family", "paper", "arxiv", "knob", "trains", "saves", "summary")
    row = dict.fromkeys(fields, "x")
    files = write(tmp_path, __init__=f"METHODS: tuple[dict[str, str], ...] = ({row!r},)")
    assert [method.info.slug for method in read_methods("things", files)] == ["x"]
    files = write(tmp_path, __init__="METHODS = tuple(f(x) for x in REGISTRY)", method=METHOD)
    assert [method.info.slug for method in read_methods("things", files)] == ["one", "two"]


def test_files_of_modules_are_found_without_importing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package_of_a_test"
    package.mkdir()
    files = write(package, __init__="raise RuntimeError", inner="raise RuntimeError", _hidden="")
    monkeypatch.syspath_prepend(tmp_path)
    assert module_file("package_of_a_test") == files[0]
    assert module_file("package_of_a_test.inner") == files[1]
    assert module_file("package_of_a_test.none") is None
    assert module_file("package_of_a_test.inner.deeper") is None
    assert module_file("no_package_of_that_name.inner") is None
    assert package_files(package) == [files[0], files[1]]
