"""Outputs that cannot be written are refused before any work is done for them; what is written takes nothing away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eckart.errors import InputError
from eckart.files import (
    atomic_directory,
    atomic_write,
    attended,
    check_output,
    check_output_file,
    check_unattended,
    locked,
)


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


def test_an_output_has_nothing_to_do_with_what_is_read(tmp_path: Path) -> None:
    model, file = tmp_path / "models/bert", tmp_path / "data/ratings.csv"
    for path in (model, file.parent):
        path.mkdir(parents=True)
    file.write_text("1")
    (tmp_path / "link").symlink_to(model)
    inputs = {"--model": model, "--data": file}
    for output, message in (
        (model, "bert is --model"),
        (tmp_path / "link", "link is --model"),
        (tmp_path / "models", "models holds --model"),
        (tmp_path / "data", "data holds --data"),
        (tmp_path / "link" / "out", "out lies in --model"),
    ):
        with pytest.raises(InputError, match=message):
            check_output(output, overwrite=True, inputs=inputs)
    with pytest.raises(InputError, match=r"ratings\.csv is --data"):
        check_output_file(file, inputs=inputs)
    beside = tmp_path / "models/bert-2"
    assert check_output(beside, inputs={**inputs, "ADAPTER": "owner/name", "BASE": None}) == beside
    assert file.read_text() == "1"


def test_only_what_is_named_goes(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (target / "model").mkdir(parents=True)
    (target / "folder").mkdir()
    for name in ("thesis.tex", "folder/a", "model/old.bin", "model/mine", "metrics.json"):
        (target / name).write_text("mine")
    (tmp_path / "link").symlink_to(target)
    (target / "stale.json").symlink_to(target / "thesis.tex")
    with atomic_directory(tmp_path / "link", overwrite=True, owned=("model/*.bin", "stale.json")) as folder:
        assert folder.parent == target
        (folder / "model").mkdir()
        (folder / "model/new.bin").write_text("new")
        (folder / "metrics.json").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()) == [
        "folder/a",
        "metrics.json",
        "model/mine",
        "model/new.bin",
        "thesis.tex",
    ]
    assert (target / "metrics.json").read_text() == "new"
    assert (target / "thesis.tex").read_text() == "mine"


def test_a_directory_in_the_place_of_a_file_stays(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").mkdir()
    (tmp_path / "model").write_text("mine")
    for name, message in (("metrics.json", "is a directory"), ("model/a", "model is a file")):
        with (
            pytest.raises(InputError, match=message),
            atomic_directory(tmp_path, overwrite=True, owned=("*",)) as folder,
        ):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "model"]
    assert (tmp_path / "model").read_text() == "mine"


def test_files_are_put_in_place_in_the_order_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (placed.append(Path(b).name), replace(a, b)))
    with atomic_directory(tmp_path, overwrite=True, last=("b", "a")) as folder:
        for name in "abc":
            (folder / name).write_text("")
    assert placed == ["c", "b", "a"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_write(tmp_path / "link") as path:
        path.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_one_run_has_a_directory(tmp_path: Path) -> None:
    target = tmp_path / "deep/out"
    with locked(target), pytest.raises(InputError, match="is being written by another run"), locked(target):
        pass
    assert list(tmp_path.iterdir()) == []
    code = f"import os\nfrom eckart.files import locked\nwith locked({str(target)!r}):\n    os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert (tmp_path / "deep/.out.lock").exists()
    with locked(target):
        target.mkdir()
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_a_directory_that_others_work_in_is_left_alone(tmp_path: Path) -> None:
    with attended(tmp_path / "out"):
        check_unattended(tmp_path / "out")  # one's own work is no hindrance
    check_unattended(tmp_path / "none")
    code = f"""
import os
import sys
from eckart.files import attended
with attended({str(tmp_path / "out")!r}):
    print("here", flush=True)
    sys.stdin.read()
    os._exit(9)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "here\n"
        with pytest.raises(InputError, match=f"--output .*out: process {other.pid} works in it: wait for it"):
            check_unattended(tmp_path / "out")
        other.communicate()
    assert other.returncode == 9 and len(list((tmp_path / "out").iterdir())) == 1
    check_unattended(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_killed_runs_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    code = f"""
import os
import subprocess
import sys
from pathlib import Path
from eckart.files import atomic_directory, atomic_write
where = Path({str(tmp_path)!r})
with atomic_write(where / "a.csv"), atomic_directory(where / "out") as folder:
    (folder / "half").write_text("")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 2 and all(".eckart-" in name for name in left)
    foreign = [".a.csv.eckart-00000000-1-x", ".a.csv.tmp", f"{left[0]}"[1:]]
    for name in foreign:
        (tmp_path / name).write_text("")
    with atomic_write(tmp_path / "b") as mine, locked(tmp_path / "out"):
        assert mine.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*foreign, "b"])


def test_names_that_no_disk_takes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="null character"):
        check_output("a\0b")
    with pytest.raises(InputError, match="over 200 bytes"):
        check_output_file(tmp_path / ("a" * 201))
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="a link to nothing"):
        check_output(tmp_path / "lost")
