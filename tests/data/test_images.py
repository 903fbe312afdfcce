"""Reading images: arrays, idx files, folders and encoded cells, and what is wrong with them."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eckart.data.images import as_bytes, decode
from eckart.data.read import read_data
from eckart.data.splits import PARTS
from eckart.errors import InputError

LABELS = np.arange(30) % 3
PIXELS = np.random.default_rng(0).integers(0, 256, (30, 8, 6, 3), np.uint8)


def refuse(source: object, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_data(source)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def folder(root: Path, count: int = 6) -> Path:
    for i in range(count * 2):
        path = root / ["cat", "dog"][i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(PIXELS[i]))
    return root


def test_arrays_in_one_archive_are_cut(tmp_path):
    np.savez(tmp_path / "d.npz", images=PIXELS, labels=LABELS)
    data = read_data(tmp_path / "d.npz")
    assert data.kind == "image"
    assert data.labels == ["0", "1", "2"]
    assert sum(len(data.splits[part]) for part in PARTS) == 30
    by_bytes = {image.tobytes(): label for image, label in zip(PIXELS, LABELS, strict=True)}
    for split in data.splits.values():
        for image, label in zip(split.inputs, split.labels, strict=True):
            assert by_bytes[image.tobytes()] == label


@pytest.mark.parametrize("names", [("x_train", "y_train", "x_test", "y_test"),
                                   ("train_images", "train_labels", "test_images", "test_labels")])  # fmt: skip
def test_arrays_by_split(tmp_path, names):
    content = dict(zip(names, (PIXELS[:20], LABELS[:20, None], PIXELS[20:], LABELS[20:, None]), strict=True))
    np.savez(tmp_path / "d.npz", **content)
    data = read_data(tmp_path / "d.npz")
    assert np.array_equal(np.stack(data.splits["test"].inputs), PIXELS[20:])


def test_idx_files(tmp_path):
    for split, part in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        images, labels = idx(PIXELS[part, :, :, 0]), idx(LABELS[part].astype(np.uint8))
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    data = read_data(tmp_path)
    assert np.array_equal(np.stack(data.splits["test"].inputs), PIXELS[20:, :, :, 0])
    assert data.splits["test"].labels == LABELS[20:].tolist()
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    refuse(tmp_path, path.name, "truncated")
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-5]))
    refuse(tmp_path, path.name, "truncated")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    path.write_bytes(whole)
    refuse(tmp_path, "t10k-labels-idx1-ubyte.gz is not there")


def test_image_folder(tmp_path):
    data = read_data(folder(tmp_path))
    assert data.labels == ["cat", "dog"]
    path = data.splits["train"].inputs[0]
    assert np.array_equal(decode(path), PIXELS[int(path.stem)])


def test_image_folder_by_split(tmp_path):
    folder(tmp_path / "train")
    folder(tmp_path / "val", 3)
    data = read_data(tmp_path)
    assert len(data.splits["test"]) == 6
    assert all(path.parent.parent.name == "val" for path in data.splits["test"].inputs)


def test_encoded_images_in_a_table(tmp_path):
    import datasets

    cells = [png(pixels) for pixels in PIXELS]
    plain = datasets.Dataset.from_dict({"image": cells, "label": LABELS.tolist()})
    plain.to_parquet(tmp_path / "train.parquet")
    typed = datasets.Dataset.from_dict(
        {"image": [{"bytes": c, "path": None} for c in cells], "label": LABELS.tolist()}
    )
    typed.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    one, two = read_data(tmp_path / "train.parquet"), read_data(tmp_path / "saved")
    assert one.kind == two.kind == "image"
    assert one.digest() == two.digest()
    assert np.array_equal(decode(one.splits["test"].inputs[0]), decode(two.splits["test"].inputs[0]))


def test_scales_and_layouts_of_arrays():
    scaled = PIXELS / np.float32(255)
    assert np.array_equal(as_bytes(scaled, "x"), PIXELS)
    assert np.array_equal(as_bytes(PIXELS.astype(np.float64), "x"), PIXELS)
    assert np.array_equal(as_bytes(PIXELS.transpose(0, 3, 1, 2), "x"), PIXELS)
    assert as_bytes(PIXELS[..., 0] > 127, "x").max() == 255
    assert decode(PIXELS[0, :, :, 0]).shape == (8, 6, 3)
    assert decode(np.concatenate([PIXELS, PIXELS], axis=3)[0, :, :, :4]).shape == (8, 6, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_not_finite(tmp_path, value):
    pixels = PIXELS / np.float32(255)
    pixels[17, 2, 3, 1] = value
    np.savez(tmp_path / "d.npz", images=pixels, labels=LABELS)
    refuse(tmp_path / "d.npz", "d.npz", "array images", str(value), "image 17")


def test_pixels_out_of_range_and_shapes_that_are_no_images(tmp_path):
    np.savez(tmp_path / "a.npz", images=PIXELS.astype(np.float32) - 128, labels=LABELS)
    refuse(tmp_path / "a.npz", "values from -128 to")
    np.savez(tmp_path / "b.npz", x=PIXELS.reshape(30, -1), y=LABELS)
    refuse(tmp_path / "b.npz", "(30, 144)")
    np.savez(tmp_path / "c.npz", images=PIXELS, labels=LABELS[:-1])
    refuse(tmp_path / "c.npz", "labels", "30 images")
    np.savez(tmp_path / "d.npz", pictures=PIXELS, labels=LABELS)
    refuse(tmp_path / "d.npz", "pictures, labels")
    np.savez(tmp_path / "e.npz", images=np.full((9, 4, 4), "a"), labels=np.arange(9) % 2)
    refuse(tmp_path / "e.npz", "images are numbers")


def test_labels_that_are_not_finite(tmp_path):
    labels = LABELS.astype(float)
    labels[4] = np.nan
    np.savez(tmp_path / "d.npz", images=PIXELS, labels=labels)
    refuse(tmp_path / "d.npz", "row 5", "label is missing")


def test_truncated_archive(tmp_path):
    np.savez(tmp_path / "d.npz", images=PIXELS, labels=LABELS)
    content = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(content[: len(content) // 2])
    refuse(tmp_path / "d.npz", "d.npz", "truncated or damaged")


def test_archive_of_objects_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "d.npz", images=np.array([{"a": 1}] * 3, dtype=object), labels=np.arange(3))
    refuse(tmp_path / "d.npz", "d.npz", "damaged")


def test_image_that_cannot_be_decoded(tmp_path):
    path = folder(tmp_path) / "cat" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"0\.png cannot be decoded"):
        decode(path)
