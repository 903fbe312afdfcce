"""Checkpoints that a kill or a power cut cannot spoil: each lists its files when all of them are on the disk.

Those of earlier versions have no list: they are whole where each of the Trainer's files can be read to its end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback

from eckart.errors import InputError
from eckart.files import atomic_write, sync
from eckart.processes import shared

LIST = "files.json"
"""The list of a checkpoint's files, each with its SHA-256; written last."""
_STATE = "trainer_state.json"
"""What the Trainer itself writes last."""
_UNLISTED = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", _STATE)
"""The files of a checkpoint that go into the numbers."""


class KeepWhole(TrainerCallback):
    """Has the files of a checkpoint on the disk, then lists them."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        shared(lambda: self._list(args, state))

    def _list(self, args: Any, state: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digests = {str(path.relative_to(folder)): _digest(path) for path in files}
        for path in (*files, *{path.parent for path in files}):
            sync(path)
        with atomic_write(folder / LIST) as path:
            path.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
        for directory in (folder, folder.parent):
            sync(directory)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def last_whole(checkpoints: Path) -> Path | None:
    """The newest whole checkpoint; torn ones that are newer are removed. None where there is none.

    Raises:
        InputError: a file was taken from the newest complete one: without it the run would go on with other numbers.
    """
    found = sorted(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in reversed(found):
        listed = _listed(path)
        absent = sorted(name for name in listed or () if not (path / name).is_file())
        if absent:
            raise InputError(
                f"--resume: {path} lacks {', '.join(absent)}, without which the numbers would be others: put it back, "
                "or remove that directory to go on from the checkpoint before it"
            )
        if listed and all(_is_same(path / name, digest) for name, digest in listed.items()):
            return path
        shutil.rmtree(path)
    return None


def _is_same(path: Path, digest: str | None) -> bool:
    try:
        return _is_readable(path) if digest is None else _digest(path) == digest
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile, zlib.error):
        return False


def _is_readable(path: Path) -> bool:
    """Whether a file that no list has a digest of is complete."""
    if path.suffix == ".json":
        return bool(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".safetensors":
        with safe_open(path, "pt"):  # compares its header with its length
            return True
    with zipfile.ZipFile(path) as archive:  # what torch.save writes
        return archive.testzip() is None


def _listed(checkpoint: Path) -> dict[str, str | None] | None:
    """The files of a checkpoint with their digests, None in one of an earlier version; None if it is unfinished."""
    if not (checkpoint / LIST).exists() and (checkpoint / _STATE).is_file():
        return dict.fromkeys(_UNLISTED)
    try:
        listed: dict[str, str | None] = json.loads((checkpoint / LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return listed if isinstance(listed, dict) else None
