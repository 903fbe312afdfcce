"""Tables are read without what only models need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_room_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40)))
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers")))  # importing them raises
from eckart.data.read import read_data, stdlib_data
from eckart.data.tables import read_table
import eckart.data.images
assert read_table(__import__("pathlib").Path({str(tmp_path / "a.csv")!r})).columns["label"][:3] == ["a", "b", "a"]
data = read_data({str(tmp_path / "a.csv")!r})
assert [len(data.splits[part]) for part in ("train", "validation", "test")] == [32, 4, 4]
assert len(data.digest()) == 64 and stdlib_data().labels
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
