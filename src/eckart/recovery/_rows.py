"""Rows of numbers from a stream that is read once: a ``.npy`` file, or bare numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from eckart.errors import InputError

CHUNK_BYTES = 2**24
"""Bytes of a stream that are read at once, in whole rows."""


def read_header(stream: BinaryIO, width: int | None, dtype: str) -> tuple[int | None, int, np.dtype, bytes]:
    """Rows if they are known, columns, type, and what was read of the first row."""
    start = _read(stream, len(np.lib.format.MAGIC_PREFIX))
    if start != np.lib.format.MAGIC_PREFIX:
        if width is None:
            raise InputError("rows have no header of a .npy file: give --width, the numbers in a row")
        if width < 1:
            raise InputError(f"width is {width}: give the numbers in a row, at least 1")
        if dtype not in ("float32", "float64"):
            raise InputError(f"dtype is {dtype!r}: give float32 or float64")
        return None, width, np.dtype(dtype), start
    try:
        major, minor = _read(stream, 2)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            major, minor
        ]
        shape, fortran, kind = read(stream)
    except (ValueError, KeyError) as error:
        raise InputError(f"rows have a broken .npy header: {error}") from None
    if len(shape) != 2 or fortran or kind.kind not in "fiu":
        layout = "column by column" if fortran else f"of shape {shape} and type {kind}"
        raise InputError(f"rows are an array {layout}: give numbers of shape (rows, d), saved row by row")
    if min(shape) < 1:
        raise InputError(f"rows are an array of shape {shape}: there are none")
    if width not in (None, shape[1]):
        raise InputError(f"width is {width}, and rows have {shape[1]} numbers by their header: leave it out")
    return shape[0], shape[1], kind, b""


def read_rows(
    stream: BinaryIO, n: int | None, width: int, kind: np.dtype, ahead: bytes
) -> Iterator[np.ndarray]:
    """Whole rows, a chunk at a time.

    Raises:
        InputError: NaN or infinity, or the stream ends in the middle of a row or before the rows that were announced.
    """
    size, seen = width * kind.itemsize, 0
    precision = np.float32 if kind.itemsize <= 4 and kind.kind == "f" else np.float64
    while n is None or seen < n:
        wanted = (
            max(CHUNK_BYTES // max(size, 1), 1) if n is None else min(max(CHUNK_BYTES // size, 1), n - seen)
        )
        chunk = ahead + _read(stream, wanted * size - len(ahead))
        ahead = b""
        if len(chunk) % size:
            raise InputError(
                f"rows end in the middle of row {seen + len(chunk) // size + 1}, of {width} numbers"
            )
        if not chunk:
            break
        rows = np.frombuffer(chunk, dtype=kind).reshape(-1, width).astype(precision)
        if not (finite := np.isfinite(rows).all(axis=1)).all():
            raise InputError(f"rows hold NaN or infinity in row {seen + finite.argmin() + 1}")
        seen += len(rows)
        yield rows
    if n is not None and seen < n:
        raise InputError(f"rows end after row {seen}, {n} were announced")


def _read(stream: BinaryIO, size: int) -> bytes:
    """``size`` bytes, or fewer where the stream ends: a pipe hands over less than it is asked for."""
    parts = []
    while size > 0 and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
