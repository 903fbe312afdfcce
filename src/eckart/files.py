"""Files that are whole or absent, written beside their target and renamed into place; and whose directory it is.

Nothing but what a job names is ever removed: an output directory may hold other things, which stay. A symbolic link
at the place of an output stays a link, and what it points to is written.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from eckart.errors import InputError

Inputs = Mapping[str, str | os.PathLike[str] | None]
"""What a job reads, by the option that names it; what is no file or directory here (a hub name) is passed over."""


def _here() -> str:
    """A name for the processes among which a process id means something: this machine, this container."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{platform.node()}:{namespace}".encode()).hexdigest()[:8]


def _mark() -> str:
    """What the temporary files of this process have in their names."""
    return f"eckart-{_here()}-{os.getpid()}-"


_MARK = re.compile(r"\.eckart-([0-9a-f]{8})-(\d+)-")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


_BROKEN = re.compile("iostream error|inline_container")


def disk_is_full(error: BaseException | None, directory: Path | None = None) -> bool:
    """Whether an error or its cause says so; torch's of a broken stream does where ``directory`` has no MiB left."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):
            return True
        broken = isinstance(error, RuntimeError) and _BROKEN.search(str(error))
        if broken and directory is not None and shutil.disk_usage(directory).free < 2**20:
            return True
        error = error.__cause__ or error.__context__
    return False


def sweep(directory: Path) -> None:
    """Remove the temporary files that killed processes of this machine left in a directory, and nothing else."""
    with suppress(OSError):
        for path in list(directory.iterdir()):
            mark = _MARK.search(path.name) if path.name.startswith(".") else None
            if mark and mark[1] == _here() and not _lives(int(mark[2])):
                remove(path)


def remove(path: Path) -> None:
    """Remove a file, a directory with all in it, or a link (what it points to stays)."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_owned(directory: Path, owned: Iterable[str], keep: Iterable[Path] = ()) -> None:
    """Remove the files of a directory that these patterns name, and the directories that are empty for it.

    Args:
        directory: where.
        owned: patterns of `Path.glob`, such as ``"metrics.json"`` or ``"model/*.safetensors"``.
        keep: files that stay nevertheless.
    """
    kept, emptied = set(keep), set()
    for pattern in owned:
        for path in list(directory.glob(pattern)):
            if path not in kept and (path.is_symlink() or not path.is_dir()):
                path.unlink(missing_ok=True)
                emptied |= set(path.parents) - {directory, *directory.parents}
    for path in sorted(emptied, reverse=True):
        with suppress(OSError):  # other things are in it
            path.rmdir()


def sync(path: Path) -> None:
    """Have a file or the names in a directory on the disk before anything else happens."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on any error it is removed.

    Args:
        path: the file to write. Its directory is created; a link is followed.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{target.name}.{_mark()}", suffix=target.suffix, dir=target.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        sync(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def check_output(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    name: str = "--output",
    inputs: Inputs | None = None,
) -> Path:
    """Refuse an output directory that already holds something or cannot be made.

    Args:
        path: the directory.
        overwrite: it may hold something.
        name: what the message calls it.
        inputs: what is read; the output may not be, hold or lie in any of it.

    Raises:
        InputError: ``path`` is a file or lies in one, or a directory that is not empty while ``overwrite`` is off, or
            one that this user may not write to, or has to do with an input.
    """
    target = Path(path)
    _check_text(name, target)
    check_apart(target, inputs or {}, name)
    if target.is_dir():
        if not overwrite and any(not _MARK.search(entry.name) for entry in target.iterdir()):
            raise InputError(f"{name} {target} is not empty: choose another directory or pass --overwrite")
    elif os.path.lexists(target):
        kind = "a file" if target.exists() else "a link to nothing"
        raise InputError(f"{name} {target} is {kind}: choose a directory")
    _check_place(target, target, name)
    return target


def check_output_file(
    path: str | os.PathLike[str], name: str = "--output", inputs: Inputs | None = None
) -> Path:
    """Refuse a file that cannot be written.

    Raises:
        InputError: ``path`` is a directory or an input, or lies in a file or where this user may not write.
    """
    target = Path(path)
    _check_text(name, target)
    check_apart(target, inputs or {}, name)
    if target.is_dir():
        raise InputError(f"{name} {target} is a directory: name a file in it")
    _check_place(target, target.absolute().parent, name)
    return target


def check_apart(output: Path, inputs: Inputs, name: str = "--output") -> None:
    """Refuse an output that is, holds or lies in something that is read, links followed.

    Raises:
        InputError: naming both.
    """
    written = Path(os.path.realpath(output))
    for what, given in inputs.items():
        if given is None or not os.path.exists(there := os.path.expanduser(given)):
            continue
        read = Path(os.path.realpath(there))
        if written == read:
            relation = "is"
        elif written in read.parents:
            relation = "holds"
        elif read in written.parents:
            relation = "lies in"
        else:
            continue
        raise InputError(f"{name} {output} {relation} {what} {given}: choose a place apart from what is read")


def _check_text(name: str, target: Path) -> None:
    if "\0" in str(target):
        raise InputError(f"{name} {str(target)!r} holds a null character: give a path")
    if any(len(os.fsencode(part)) > 200 for part in target.parts):
        raise InputError(f"{name} {str(target)[:60]}… has a name of over 200 bytes: choose a shorter one")


def _check_place(target: Path, directory: Path, name: str) -> None:
    """Refuse a target whose directory cannot be made or written to."""
    directory = directory.absolute()
    there = next(place for place in (directory, *directory.parents) if os.path.exists(place))
    if not there.is_dir():
        raise InputError(f"{name} {target}: {there} is a file: choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{name} {target}: {there} may not be written to: choose another place")


@contextmanager
def locked(path: str | os.PathLike[str], name: str = "--output") -> Iterator[None]:
    """Keep an output directory from other runs for the block; what killed runs left beside and in it is swept.

    The lock is one of the operating system's and ends with its holder, however that ends.

    Raises:
        InputError: another run has it.
    """
    from filelock import FileLock, Timeout

    target = Path(os.path.realpath(path))
    made = [place for place in target.parents if not place.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    inside = target.is_dir() and not os.access(target.parent, os.W_OK)
    file = (target if inside else target.parent) / f".{target.name}.lock"
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{name} {path} is being written by another run: wait for it, or choose another directory"
        ) from None
    try:
        sweep(target)
        sweep(target.parent)
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()
        for place in made:
            with suppress(OSError):  # something was written
                place.rmdir()


@contextmanager
def attended(path: str | os.PathLike[str]) -> Iterator[None]:
    """Mark a directory, for the block, as one that this process works in, where several may; a kill leaves no mark."""
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    handle, mark = tempfile.mkstemp(prefix=f".{_mark()}", dir=directory)
    os.close(handle)
    try:
        yield
    finally:
        Path(mark).unlink(missing_ok=True)


def check_unattended(path: str | os.PathLike[str], name: str = "--output") -> None:
    """Refuse a directory that other processes of this machine work in.

    Raises:
        InputError: naming one of them.
    """
    sweep(Path(path))
    marks = filter(None, (_MARK.match(entry.name) for entry in Path(path).glob(".eckart-*")))
    others = sorted({int(mark[2]) for mark in marks if mark[1] == _here()} - {os.getpid()})
    if others:
        raise InputError(
            f"{name} {path}: process {others[0]} works in it: wait for it or stop it, or choose another directory"
        )


@contextmanager
def atomic_directory(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    owned: Iterable[str] = (),
    last: Iterable[str] = (),
    name: str = "--output",
) -> Iterator[Path]:
    """Yield a temporary directory; on success its files are those of ``path``, on any error nothing is left behind.

    A directory that is there keeps whatever else it holds.

    Args:
        path: the directory to make, or to write into.
        overwrite: replace what is there; without it a directory that is not empty is refused.
        owned: patterns of files that an earlier one may have left and that go where no new one takes their place.
        last: names of the files that are put in place after the others, in this order.
        name: what a message calls the directory.

    Raises:
        InputError: as `check_output`; a directory stands where a file is to be, or the other way round.
    """
    check_output(path, overwrite=overwrite, name=name)
    target = Path(os.path.realpath(path))
    there = target.is_dir()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(
        tempfile.mkdtemp(prefix=f".{target.name}.{_mark()}", dir=target if there else target.parent)
    )
    try:
        yield temporary
        temporary.chmod(0o755)
        files = [file for file in temporary.rglob("*") if file.is_file()]
        for file in files:
            file.chmod(0o644)
            sync(file)
        if there:
            _move_into(target, temporary, files, tuple(owned), tuple(last), name)
        else:
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_into(
    target: Path, source: Path, files: list[Path], owned: tuple[str, ...], last: tuple[str, ...], name: str
) -> None:
    """Put files in place in a directory that is there, and remove those of an earlier run that they replace."""
    order = {file: place for place, file in enumerate(last)}
    inside = sorted((file.relative_to(source) for file in files), key=lambda file: order.get(str(file), -1))
    for file in inside:
        if (target / file).is_dir() and not (target / file).is_symlink():
            raise InputError(f"{name} {target}: {file} is a directory, where a file is to be: move it away")
        for parent in list(file.parents)[:-1]:
            if os.path.lexists(target / parent) and not (target / parent).is_dir():
                raise InputError(
                    f"{name} {target}: {parent} is a file, where a directory is to be: move it away"
                )
    remove_owned(target, owned, keep=[target / file for file in inside])
    for file in inside:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / file, target / file)
