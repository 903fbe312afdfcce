"""Outputs that cannot be written are refused before any work is done for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eckart.errors import InputError
from eckart.files import check_output, check_output_file


def test_what_is_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path, "is not empty: choose another directory or pass --overwrite"),
        (tmp_path / "file", "file is a file: choose a directory"),
        (tmp_path / "file" / "a" / "b", "file is a file: choose another place"),
    ):
        with pytest.raises(InputError, match=message):
            check_output(path)
    with pytest.raises(InputError, match="is a directory: name a file in it"):
        check_output_file(tmp_path)
    with pytest.raises(InputError, match="file is a file: choose another place"):
        check_output_file(tmp_path / "file" / "a.npy")
    assert check_output(tmp_path / "new" / "deep") == tmp_path / "new" / "deep"
    assert check_output_file(tmp_path / "file") == tmp_path / "file"
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    for check, path in (
        (check_output, "closed/a"),
        (check_output, "closed"),
        (check_output_file, "closed/a"),
    ):
        with pytest.raises(InputError, match="closed may not be written to: choose another place"):
            check(tmp_path / path)
