"""Directories are taken as they are, names fetched from the hub; the suite is offline, so the hub's part is played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from eckart.errors import InputError
from eckart.hub import download, local_directory


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert local_directory(tmp_path / "model", ["*"]) == tmp_path / "model"
    assert local_directory("~/model", ["*"]) == tmp_path / "model"


@pytest.mark.parametrize("name", ["./a", "/a", "~/a", "a/b/c"])
def test_what_can_only_be_a_path_is_not_asked_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(InputError, match=f"^--model {name}: no such directory$"):
        local_directory(name, ["*"], "--model")


@pytest.mark.parametrize("name", ["bert", "owner/bert"])
def test_a_name_is_fetched_without_sub_directories(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def fetch(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert local_directory(name, ("*.json",)) == tmp_path
    assert download(name, ["README.md"], name, kind="dataset") == tmp_path
    wanted = {"allow_patterns": ["*.json"], "ignore_patterns": ["*/*"]}
    assert asked == [
        (name, wanted | {"repo_type": "model"}),
        (name, wanted | {"repo_type": "dataset", "allow_patterns": ["README.md"]}),
    ]


@pytest.mark.parametrize("argument", ["", "--model"])
def test_a_name_that_is_nowhere_is_refused(argument: str) -> None:
    shown = f"{argument} owner/nothing".strip()
    with pytest.raises(InputError, match=f"^{shown} is neither a directory nor found .* needs network"):
        local_directory("owner/nothing", ["*.json"], argument)
    with pytest.raises(InputError, match="no name at all is neither"):
        local_directory("no name at all", ["*.json"])
