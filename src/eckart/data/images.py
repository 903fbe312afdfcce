"""Images read from array files, idx files and folders, as tables with the columns ``image`` and ``label``.

An image is kept as it was found (an array, encoded bytes or a path) until `decode` makes pixels of it.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from eckart.data.tables import Table, check_content
from eckart.data.unpacked import check_archive, open_bytes
from eckart.errors import InputError, first_line
from eckart.extras import require

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "t10k": "test",
}
ROLES = {
    **dict.fromkeys(("image", "images", "img", "imgs", "x", "data", "pixels"), "image"),
    **dict.fromkeys(("label", "labels", "y", "target", "targets", "class"), "label"),
    **dict.fromkeys(("mask", "masks"), "mask"),
}
UNSPLIT = "all"


def read_arrays(path: Path) -> dict[str, Table]:
    """Read a NumPy archive: ``images`` with ``labels`` or ``masks``, ``x``/``y``, or the same per split (``x_train``,
    ``test_labels``).

    Images are ``n h w``, ``n h w c`` or ``n c h w`` with 1, 3 or 4 channels: bytes 0…255, or floats 0…1 or 0…255.

    Raises:
        InputError: damaged archive, arrays that do not fit together, NaN, Inf or values out of range.
    """
    check_content(path)
    found: dict[str, dict[str, tuple[str, np.ndarray]]] = {}
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                words = name.lower().split("_")
                split = next((SPLITS[word] for word in words if word in SPLITS), UNSPLIT)
                role = next((ROLES[word] for word in words if word in ROLES), None)
                if role and all(word in SPLITS or word in ROLES for word in words):
                    found.setdefault(split, {})[role] = name, archive[name]
            names = ", ".join(archive.files)
    except InputError:
        raise
    except (
        OSError,
        EOFError,
        KeyError,
        MemoryError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise InputError(
            f"--data {path} is a truncated or damaged .npz archive: {first_line(error)}"
        ) from None
    found = {split: roles for split, roles in found.items() if "image" in roles and len(roles) > 1}
    if not found:
        raise InputError(
            f"--data {path} holds no arrays named images and labels (or x_train and y_train, …); it holds: {names}"
        )
    return {split: _pairs(path, roles) for split, roles in found.items()}


def _pairs(path: Path, roles: dict[str, tuple[str, np.ndarray]]) -> Table:
    """Images with their labels, their masks or both."""
    image_name, images = roles["image"]
    columns = {} if "label" not in roles else _table(path, image_name, images, *roles["label"]).columns
    if "mask" not in roles:
        return Table(columns, str(path))
    mask_name, masks = roles["mask"]
    if len(images) != len(masks):
        raise InputError(
            f"--data {path}: {mask_name} holds {len(masks)} masks for the {len(images)} images in {image_name}"
        )
    pixels = as_bytes(images, f"--data {path}: array {image_name}")
    return Table({**columns, "image": list(pixels), "mask": list(masks)}, str(path))


def _table(path: Path, image_name: str, images: np.ndarray, label_name: str, labels: np.ndarray) -> Table:
    labels = labels.reshape(len(labels), -1)
    if labels.shape[1] != 1 or len(labels) != len(images):
        raise InputError(
            f"--data {path}: {label_name} must hold one label for each of the {len(images)} images in {image_name}, "
            f"its shape is {labels.shape}"
        )
    pixels = as_bytes(images, f"--data {path}: array {image_name}")
    return Table({"image": list(pixels), "label": labels[:, 0].tolist()}, str(path))


def as_bytes(images: np.ndarray, where: str) -> UInt8[np.ndarray, "n h w *c"]:
    """Check an array of images and return it as bytes, channels last; floats within 0…1 are scaled by 255."""
    if images.ndim == 4 and images.shape[1] in (1, 3, 4) and images.shape[3] not in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise InputError(f"{where} has shape {images.shape}; images are n×h×w or n×h×w×c with c = 1, 3 or 4")
    if images.dtype == np.uint8:
        return images
    if images.dtype == np.bool_:
        return images.astype(np.uint8) * 255
    if not np.issubdtype(images.dtype, np.number):
        raise InputError(f"{where} has dtype {images.dtype}; images are numbers")
    if not (finite := np.isfinite(images)).all():
        place = np.argwhere(~finite)[0]
        raise InputError(
            f"{where} has {images[tuple(place)]} in image {place[0]}: remove or repair that image"
        )
    low, high = images.min(initial=0), images.max(initial=0)
    if low < 0 or high > 255:
        raise InputError(f"{where} has values from {low:g} to {high:g}; give bytes 0…255 or floats 0…1")
    scale = 255 if np.issubdtype(images.dtype, np.floating) and high <= 1 else 1
    pixels: np.ndarray = np.rint(images * scale).astype(np.uint8)
    return pixels


def is_idx_directory(directory: Path) -> bool:
    """Whether the directory holds idx image files (``train-images-idx3-ubyte.gz``)."""
    return any(directory.glob("*-images*idx3*"))


def read_idx_directory(directory: Path) -> dict[str, Table]:
    """Read pairs of idx files, ``<split>-images-idx3-ubyte[.gz]`` with ``<split>-labels-idx1-ubyte[.gz]``."""
    tables = {}
    for file in sorted(directory.glob("*-images*idx3*")):
        partner = file.with_name(file.name.replace("images", "labels").replace("idx3", "idx1"))
        words = re.split(r"[-_.]", file.name.lower())
        split = next((SPLITS[word] for word in words if word in SPLITS), UNSPLIT)
        if not partner.is_file():
            raise InputError(
                f"--data {directory}: {file.name} has no labels beside it, {partner.name} is not there"
            )
        tables[split] = _table(directory, file.name, _idx(file), partner.name, _idx(partner))
    return tables


def _idx(path: Path) -> np.ndarray:
    try:
        with open_bytes(path) as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InputError(f"--data {path} is truncated or damaged gzip: copy it again") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise InputError(f"--data {path} is not an idx file of bytes")
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], ">i4")
    if len(content) - start != math.prod(shape.tolist()):
        raise InputError(
            f"--data {path} is truncated: {len(content) - start} bytes for shape {tuple(shape.tolist())}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_image_folder(directory: Path) -> dict[str, Table]:
    """Read ``directory/<class>/…`` or ``directory/<split>/<class>/…``; empty when there are no such folders."""
    folders = _folders(directory)
    if folders and all(folder.name.lower() in SPLITS for folder in folders):
        return {SPLITS[folder.name.lower()]: _classes(folder) for folder in folders}
    table = _classes(directory) if folders else None
    return {UNSPLIT: table} if table is not None and len(table) else {}


def _classes(directory: Path) -> Table:
    images: list[Path] = []
    labels: list[str] = []
    for folder in _folders(directory):
        found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS)
        images += found
        labels += [folder.name] * len(found)
    return Table({"image": images, "label": labels}, str(directory))


def _folders(directory: Path) -> list[Path]:
    return sorted(
        entry for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__"))
    )


def is_image(value: Any) -> bool:
    """Whether a cell of a table is an image in one of the forms that `decode` knows."""
    if isinstance(value, dict):
        return value.keys() == {"bytes", "path"}
    return isinstance(value, bytes | Path | np.ndarray)


def decode(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of an array (``h w`` or ``h w c``), of encoded bytes, of a file, or of a `datasets` image cell.

    Raises:
        InputError: the image cannot be decoded; the file is named.
    """
    if isinstance(image, dict):
        image = image["bytes"] or Path(image["path"])
    if isinstance(image, np.ndarray):
        channels = image[..., None] if image.ndim == 2 else image
        return np.repeat(channels, 3, axis=2) if channels.shape[2] == 1 else channels[..., :3]
    pillow = require("PIL.Image", extra="compare")
    name = image if isinstance(image, Path) else "an encoded image"
    try:
        with pillow.open(io.BytesIO(image) if isinstance(image, bytes) else image) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise InputError(
            f"--data: {name} cannot be decoded as an image ({first_line(error)}): remove or replace it"
        ) from None
