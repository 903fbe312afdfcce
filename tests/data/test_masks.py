"""Images with masks: arrays, columns, folders; the classes that masks hold, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eckart.data.masks import IGNORED, MASKS, Mask, pixel_counts
from eckart.data.read import read_data
from eckart.data.splits import PARTS
from eckart.errors import InputError

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (12, 6, 8, 3), np.uint8)
CLASSES = DRAW.integers(0, 3, (12, 6, 8), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def arrays(path: Path, masks: np.ndarray = CLASSES, **more: np.ndarray) -> Path:
    np.savez(path / "d.npz", images=PIXELS, masks=masks, **more)
    return path / "d.npz"


def refuse(source: Path, *words: str, **options: str) -> None:
    with pytest.raises(InputError) as caught:
        read_data(source, **options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def pairs(source: Path) -> dict[bytes, bytes]:
    """Pixels and classes of every example."""
    data, found = read_data(source), {}
    for part in PARTS:
        for image, mask in zip(data.splits[part].inputs, data.splits[part].labels, strict=True):
            held = image["bytes"] if isinstance(image, dict) else image
            if not isinstance(held, np.ndarray):
                held = np.asarray(Image.open(io.BytesIO(held) if isinstance(held, bytes) else held))
            found[held.tobytes()] = mask.pixels().tobytes()
    return found


WANTED = {image.tobytes(): mask.tobytes() for image, mask in zip(PIXELS, CLASSES, strict=True)}


def test_arrays(tmp_path: Path) -> None:
    data = read_data(arrays(tmp_path))
    assert (data.kind, data.target, data.labels, data.columns) == (
        MASKS,
        MASKS,
        ["0", "1", "2"],
        ["image", "mask"],
    )
    assert pairs(tmp_path / "d.npz") == WANTED
    both = arrays(tmp_path, labels=np.arange(12) % 2)
    assert read_data(both).target == MASKS and read_data(both, labelled=True).labels == ["0", "1"]


def test_columns_of_a_table(tmp_path: Path) -> None:
    cells = {
        "picture": [png(image) for image in PIXELS],
        "annotation": [png(mask) for mask in CLASSES],
        "name": list("abcdefghijkl"),
    }
    pd.DataFrame(cells).to_parquet(tmp_path / "d.parquet")
    assert pairs(tmp_path / "d.parquet") == WANTED
    assert "columns that are not used: name" in read_data(tmp_path / "d.parquet").notes
    pd.DataFrame({"a": cells["picture"], "b": cells["annotation"]}).to_parquet(tmp_path / "e.parquet")
    named = read_data(tmp_path / "e.parquet", target=MASKS, text_column="a", label_column="b")
    assert named.columns == ["a", "b"]
    refuse(tmp_path / "e.parquet", "no columns of images and masks", target=MASKS)


@pytest.mark.parametrize(
    "shape",
    [
        "images/{n}.png masks/{n}.png",
        "images/{n}.png annotations/{n}_mask.png",
        "train/imgs/{n}.png train/labels/{n}.png",
        "images/train/{n}.png masks/train/{n}.png",
    ],
)
def test_folders(tmp_path: Path, shape: str) -> None:
    for n, both in enumerate(zip(PIXELS, CLASSES, strict=True)):
        for name, pixels in zip(shape.split(), both, strict=True):
            path = tmp_path / name.format(n=n)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(pixels))
    assert pairs(tmp_path) == WANTED
    path.unlink()
    refuse(tmp_path, "11.png has no partner in")


def test_palettes_two_valued_and_equal_channels(tmp_path: Path) -> None:
    palette = Image.fromarray(CLASSES[0], "P")
    palette.putpalette([i for i in range(256) for _ in range(3)][::-1])
    file = io.BytesIO()
    palette.save(file, "PNG")
    assert np.array_equal(Mask(file.getvalue(), (0, 1, 2)).pixels(), CLASSES[0])
    thrice = np.repeat(CLASSES[0][..., None], 3, axis=2)
    assert np.array_equal(Mask(png(thrice), (0, 1, 2)).pixels(), CLASSES[0])
    two = read_data(arrays(tmp_path, CLASSES > 0))
    assert two.labels == ["0", "1"]
    assert np.array_equal(
        Mask(png((CLASSES[0] > 0).astype(np.uint8) * 255), (0, 255)).pixels(), CLASSES[0] > 0
    )


def test_what_255_stands_for(tmp_path: Path) -> None:
    data = read_data(arrays(tmp_path, 255 * (CLASSES > 0).astype(np.uint8)))
    assert data.labels == ["0", "255"] and not any("no class" in note for note in data.notes)
    data = read_data(arrays(tmp_path, np.where(CLASSES == 2, 255, CLASSES + 7).astype(np.uint8)))
    assert data.labels == ["7", "8"] and any("of no class" in note for note in data.notes)
    mask = Mask(np.array([[7, 8, 255, 9, 3]]), (7, 8))
    assert mask.pixels().tolist() == [[0, 1, IGNORED, IGNORED, IGNORED]]
    assert pixel_counts([mask, mask], 2).tolist() == [2, 2]


def test_the_digest_tells_masks_apart(tmp_path: Path) -> None:
    one = read_data(arrays(tmp_path)).digest()
    other = CLASSES.copy()
    other[5, 3, 3] = (other[5, 3, 3] + 1) % 3
    assert read_data(arrays(tmp_path)).digest() == one != read_data(arrays(tmp_path, other)).digest()


def test_bad_masks_are_refused(tmp_path: Path) -> None:
    refuse(arrays(tmp_path, CLASSES[:, :, :5]), "row 1, column mask: the mask is 5×6 and its image 8×6")
    refuse(arrays(tmp_path, CLASSES[:5]), "masks holds 5 masks for the 12 images in images")
    refuse(arrays(tmp_path, 0 * CLASSES), "1 classes (0); give 2 to 255")
    many = np.arange(12 * 6 * 8).reshape(12, 6, 8)
    refuse(arrays(tmp_path, many), "575 classes (0, 1, 2, 3, 4, …)")
    refuse(
        arrays(tmp_path, CLASSES - 0.5), "row 1, column mask: the mask holds -0.5 to 1.5; give whole numbers"
    )
    refuse(arrays(tmp_path, -CLASSES.astype(int)), "give whole numbers from 0 to 65535")
    refuse(arrays(tmp_path, CLASSES.astype(int) + 65534), "give whole numbers from 0 to 65535")
    refuse(arrays(tmp_path, CLASSES * np.nan), "the mask holds nan to nan")
    refuse(arrays(tmp_path, PIXELS), "row 1, column mask: the mask has 3 channels that differ")
    cells = {
        "image": [png(image) for image in PIXELS],
        "mask": [png(CLASSES[0]), b"none", *[png(CLASSES[0])] * 10],
    }
    pd.DataFrame(cells).to_parquet(tmp_path / "d.parquet")
    refuse(tmp_path / "d.parquet", "row 2, column mask: the mask cannot be decoded")
    cells["mask"][1] = None
    pd.DataFrame(cells).to_parquet(tmp_path / "d.parquet")
    refuse(tmp_path / "d.parquet", "row 2, column mask: the mask is missing")
