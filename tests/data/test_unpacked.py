"""What unpacks to more than anybody means is refused in one line, before memory is gone."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from eckart.data import unpacked
from eckart.data.images import decode
from eckart.data.read import read_data
from eckart.data.unpacked import read_parquet
from eckart.errors import InputError

MOST = 2**16


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "MOST", MOST)


def refused(path: Path, remedy: str) -> None:
    with pytest.raises(InputError, match=rf"unpacks to more than .* GiB: {remedy}") as caught:
        read_data(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "txt"])
def test_gzip_is_counted_while_it_is_unpacked(tmp_path: Path, ending: str) -> None:
    content = (b'{"text": "' if "json" in ending else b"text\n") + b"a" * MOST
    path = tmp_path / f"bomb.{ending}.gz"
    path.write_bytes(gzip.compress(content))
    refused(path, "unpack it with gunzip")
    if ending == "txt":
        path.write_bytes(gzip.compress(content[: MOST // 8 - 1] + b"\n" + content[-7 * MOST // 8 :]))
        assert read_data(path).splits["train"].inputs, "just as much as may be"


def test_what_is_not_compressed_is_as_large_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a line\n" * MOST)
    assert read_data(tmp_path / "a.txt").splits["train"].inputs


def test_images_in_gzip(tmp_path: Path) -> None:
    images = b"\0\0\x08\x03" + struct.pack(">3i", 2, 2, MOST) + bytes(4 * MOST)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x02\0\1"))
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte.gz unpacks to more than"):
        read_data(tmp_path)


def test_an_archive_of_arrays(tmp_path: Path) -> None:
    arrays = {"images": np.zeros((4, 256, 256), np.uint8), "labels": np.arange(4) % 2}
    np.savez_compressed(tmp_path / "bomb.npz", **arrays)
    refused(tmp_path / "bomb.npz", "write its arrays uncompressed, with numpy.savez")
    np.savez(tmp_path / "plain.npz", **arrays | {"labels": np.arange(4) * 0})
    with pytest.raises(
        InputError, match="every example has the label"
    ):  # read, and then found to be of one class
        read_data(tmp_path / "plain.npz")


def test_an_array_that_says_it_is_larger_than_memory(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        content, {"descr": "|u1", "fortran_order": False, "shape": (2**50, 8, 8)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", content.getvalue())
        archive.writestr("labels.npy", content.getvalue())
    with pytest.raises(InputError, match="truncated or damaged"):
        read_data(tmp_path / "a.npz")


def test_a_column_of_one_long_word(tmp_path: Path) -> None:
    """A dictionary makes such a file small, whatever its metadata say."""
    words = pyarrow.array(["a" * 1000] * 500).dictionary_encode()
    parquet.write_table(pyarrow.table({"text": words}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < MOST // 8
    refused(tmp_path / "bomb.parquet", "cut it into several files")
    with pytest.raises(InputError, match=r"ratings .* unpacks to more than"):
        read_parquet(tmp_path / "bomb.parquet", "recovery", "ratings")


def test_a_picture_of_more_pixels_than_anybody_has(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    picture = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(InputError, match="cannot be decoded as an image"):
        decode(picture)
