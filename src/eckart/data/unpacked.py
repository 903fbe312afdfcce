"""Files that may be compressed, opened; what unpacks to more than anybody means is refused before memory is gone."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from eckart.errors import InputError, first_line
from eckart.extras import require

MOST = 2**30
"""Bytes that a compressed file may unpack to."""
ROWS = 1024
"""Rows of a Parquet file that are unpacked at a time."""


def endings(path: Path) -> tuple[str, bool]:
    """The ending that tells the format, and whether gzip is around it: ``a.csv.gz`` gives (".csv", True)."""
    compressed = path.suffix.lower() == ".gz"
    inner = path.with_suffix("") if compressed else path
    return inner.suffix.lower() or (".txt" if compressed else ""), compressed


def check_unpacked(size: int, path: Path, remedy: str, argument: str = "--data") -> None:
    """Refuse what a compressed file unpacks to, or would.

    Raises:
        InputError: more than `MOST` bytes.
    """
    if size > MOST:
        raise InputError(f"{argument} {path} unpacks to more than {MOST / 2**30:g} GiB: {remedy}")


class _Counted(io.RawIOBase):
    """The content of a gzip file, up to `MOST` bytes."""

    def __init__(self, path: Path) -> None:
        self.path, self.file, self.size = path, gzip.GzipFile(path), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.size += (count := self.file.readinto(buffer))
        check_unpacked(self.size, self.path, "unpack it with gunzip and give what is in it")
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def open_bytes(path: Path) -> BinaryIO:
    """The content of a file, plain or gzip."""
    return cast(BinaryIO, io.BufferedReader(_Counted(path))) if endings(path)[1] else path.open("rb")


@contextmanager
def open_text(path: Path, encoding: str = "utf-8") -> Iterator[TextIO]:
    """Open a file of text, plain or gzip; damage met while reading becomes an `InputError`."""
    utf8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    try:
        with (
            open_bytes(path) as content,
            io.TextIOWrapper(content, "utf-8-sig" if utf8 else encoding, newline="") as file,
        ):
            yield file
    except UnicodeDecodeError as error:
        shown, remedy = ("UTF-8", "name its --encoding") if utf8 else (encoding, "name another --encoding")
        raise InputError(
            f"--data {path} is not {shown} text ({error.reason}): convert it to UTF-8, or {remedy}"
        ) from None
    except OSError as error:
        if error.strerror is None:  # gzip's own
            raise InputError(
                f"--data {path} is truncated or damaged gzip: copy or compress it again"
            ) from None
        raise InputError(f"--data {path} cannot be read: {error.strerror}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InputError(f"--data {path} is truncated or damaged gzip: copy or compress it again") from None


def check_archive(path: Path) -> None:
    """Refuse a ZIP archive whose members say that they unpack to more than `MOST` bytes; no more is read of any.

    Raises:
        InputError: as said.
        zipfile.BadZipFile: no archive.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    packed = path.stat().st_size
    if size > 2 * packed:  # what is stored as it is takes no more memory than it takes disk
        check_unpacked(size, path, "write its arrays uncompressed, with numpy.savez")


def read_parquet(path: Path, extra: str, argument: str = "--data") -> dict[str, Sequence[Any]]:
    """The columns of a Parquet file.

    Raises:
        InputError: a file that is damaged, cut short or unpacks to more than `MOST` bytes.
    """
    parquet = require("pyarrow.parquet", extra=extra)
    columns: dict[str, list[Any]] = {}
    size = 0
    try:
        with path.open("rb") as file:
            file.seek(-4, 2)
            if file.read() != b"PAR1":
                raise InputError(f"{argument} {path} is a truncated Parquet file: copy or export it again")
        with parquet.ParquetFile(path) as table:
            columns = {name: [] for name in table.schema_arrow.names}
            for batch in table.iter_batches(ROWS):
                size += sum(
                    (column.dictionary_decode() if hasattr(column, "dictionary_decode") else column).nbytes
                    for column in batch.columns
                )
                check_unpacked(size, path, "cut it into several files, or give it as text", argument)
                for name, column in batch.to_pydict().items():
                    columns[name] += column
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{argument} {path} is a damaged Parquet file: {first_line(error)}") from None
    return dict(columns)
