"""Files that are whole or absent: everything is written beside its target and renamed into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eckart.errors import InputError


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on any error it is removed.

    Args:
        path: the file to write. Its directory is created.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        _sync(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def check_output(path: str | os.PathLike[str], *, overwrite: bool = False, name: str = "--output") -> Path:
    """Refuse an output directory that already holds something or cannot be made.

    Raises:
        InputError: ``path`` is a file or lies in one, or a directory that is not empty while ``overwrite`` is off, or
            one that this user may not write to.
    """
    target = Path(path)
    if target.is_dir():
        if any(target.iterdir()) and not overwrite:
            raise InputError(f"{name} {target} is not empty: choose another directory or pass --overwrite")
    elif target.exists():
        raise InputError(f"{name} {target} is a file: choose a directory")
    _check_place(target, target, name)
    return target


def check_output_file(path: str | os.PathLike[str], name: str = "--output") -> Path:
    """Refuse a file that cannot be written.

    Raises:
        InputError: ``path`` is a directory, or lies in a file or where this user may not write.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{name} {target} is a directory: name a file in it")
    _check_place(target, target.absolute().parent, name)
    return target


def _check_place(target: Path, directory: Path, name: str) -> None:
    """Refuse a target whose directory cannot be made or written to."""
    directory = directory.absolute()
    there = next(place for place in (directory, *directory.parents) if os.path.exists(place))
    if not there.is_dir():
        raise InputError(f"{name} {target}: {there} is a file: choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{name} {target}: {there} may not be written to: choose another place")


@contextmanager
def atomic_directory(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory; on success it becomes ``path``, on any error nothing is left behind.

    Args:
        path: the directory to make.
        overwrite: replace what is there; without it a directory that is not empty is refused.

    Raises:
        InputError: as `check_output`.
    """
    target = check_output(path, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o644)
                _sync(file)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            os.replace(target, old / target.name)
            os.replace(temporary, target)
            shutil.rmtree(old)
        else:
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
