"""Whether a directory holds the run that is asked for, and what the message says when it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eckart.errors import InputError
from eckart.jobs.earlier import check_same, differences, read_earlier


@pytest.mark.parametrize(
    ("there", "here", "phrases"),
    [
        ({"a": 1, "b": [2]}, {"b": [2], "a": 1}, []),
        ({"a": 1}, {"a": "1"}, ["a is 1 there and 1 here"]),
        ({"a": 1, "b": 2}, {"b": 3, "a": 4}, ["b is 2 there and 3 here", "a is 1 there and 4 here"]),
        ({"a": 1}, {"b": 2}, ["b is None there and 2 here", "a is 1 there and None here"]),
        ({"sha": "x", "a": 1}, {"sha": "y", "a": 1}, ["the data have changed"]),
        ({"sha": "x", "a": 1}, {"sha": "x", "a": 2}, ["a is 1 there and 2 here"]),
    ],
)
def test_differences(there: dict[str, Any], here: dict[str, Any], phrases: list[str]) -> None:
    assert differences(there, here, {"sha": "the data have changed"}) == phrases
    if not phrases:
        check_same(Path("out"), "run", there, here)
        return
    with pytest.raises(InputError) as caught:
        check_same(Path("out"), "run", there, here, {"sha": "the data have changed"})
    assert str(caught.value) == (
        f"--output out holds another run: {'; '.join(phrases)}: choose another directory or pass --overwrite"
    )


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"settings": 3}', '{"settings"', "\udcff"])
def test_files_of_something_else(tmp_path: Path, content: str) -> None:
    path = tmp_path / "measure.json"
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match=r"its measure\.json is not a measurement's: choose another"):
        read_earlier(path, "measurement", lambda found: dict(found["settings"]))


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "measure.json"
    path.write_text(json.dumps({"settings": {"limit": 20}}))
    assert read_earlier(path, "measurement", lambda found: dict(found["settings"])) == {"limit": 20}
