"""Images with a mask each, a class for every pixel: columns of a table, arrays, or folders beside each other."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from eckart.data.columns import IMAGE, existing
from eckart.data.images import IMAGE_ENDINGS, SPLITS, UNSPLIT, decode, is_image
from eckart.data.splits import Split
from eckart.data.structured import Structured, named, place
from eckart.data.tables import Table
from eckart.errors import InputError, first_line
from eckart.extras import require

MASKS = "masks"
"""A target as `CLASSES` and its like are: a class for each pixel."""
IGNORED = 255
"""The value of a pixel of no class, where masks hold others than 0 and this one."""
MOST = 2**16
"""Values that masks may hold."""
MASK = ("mask", "masks", "annotation", "annotations", "segmentation", "segmentation_mask", "semantic_mask")
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "annotations", "labels", "segmentations")


@dataclass(frozen=True)
class Mask:
    """The classes of an image's pixels, decoded when they are asked for.

    Args:
        cell: what holds them: an array, encoded bytes, a path or a `datasets` cell.
        classes: the values that are classes, ascending.
    """

    cell: Any
    classes: tuple[int, ...]

    def pixels(self) -> UInt8[np.ndarray, "h w"]:
        """The index of each pixel's class, `IGNORED` where it has none."""
        values, known = mask_values(self.cell, "--data"), np.array(self.classes)
        places = np.minimum(np.searchsorted(known, values), len(known) - 1)
        found: np.ndarray = np.where(known[places] == values, places, IGNORED).astype(np.uint8)
        return found


def read_masks(
    tables: Mapping[str, Table],
    text_column: str | None,
    label_column: str | None,
    notes: list[str],
    *,
    wanted: bool,
) -> Structured | None:
    """Images, each with its `Mask`; None where the tables hold no such.

    The values that masks hold are the classes, in their order; masks of 0 and 255 have two. Otherwise 255 is no class.

    Args:
        tables: by split.
        text_column: of images.
        label_column: of masks.
        notes: what is found is added.
        wanted: refuse tables that have none.

    Raises:
        InputError: a column that is not there, a cell that is no image, a mask of another size than its image, of
            several channels that differ, of no whole numbers, or of too few or too many values.
    """
    first = next(iter(tables.values()))
    image = existing(first, text_column, "--text-column") if text_column else named(first, IMAGE)
    mask = existing(first, label_column, "--label-column") if label_column else named(first, MASK)
    if image is None or mask is None or not all(is_image(first.columns[name][0]) for name in (image, mask)):
        if not wanted:
            return None
        raise InputError(
            f"--kind segmentation: no columns of images and masks (such as image, mask) in {first.listed}; name them "
            "with --text-column and --label-column, or give a directory with the folders images and masks"
        )
    found = np.zeros(MOST, dtype=bool)
    for table in tables.values():
        for own in _masks(table, image, mask):
            found |= np.bincount(own.reshape(-1), minlength=MOST) > 0
    values = np.flatnonzero(found).tolist()
    classes = values if values == [0, IGNORED] else [value for value in values if value != IGNORED]
    if not 2 <= len(classes) <= IGNORED:
        told = ", ".join([*map(str, classes[:5]), *["…"] * (len(classes) > 5)])
        raise InputError(
            f"--data {first.source}: the masks hold {len(classes)} classes ({told}); give 2 to {IGNORED}"
        )
    if classes != values:
        notes.append(f"pixels of value {IGNORED} are of no class and not counted")
    splits = {
        part: Split(list(table.columns[image]), [Mask(cell, tuple(classes)) for cell in table.columns[mask]])
        for part, table in tables.items()
    }
    return Structured(splits, [str(value) for value in classes], [image, mask])


def _masks(table: Table, image: str, mask: str) -> Iterator[Int[np.ndarray, "h w"]]:
    """The values of the masks of a table, each held against its image."""
    for row, (picture, cell) in enumerate(zip(table.columns[image], table.columns[mask], strict=True), 1):
        for name, value in ((image, picture), (mask, cell)):
            if not is_image(value):
                raise InputError(f"{place(table, row, name)}: the {name} is missing; remove the row")
        values = mask_values(cell, place(table, row, mask))
        if (size := _size(picture)) != values.shape:
            raise InputError(
                f"{_where(cell, place(table, row, mask))}: the mask is {values.shape[1]}×{values.shape[0]} and its "
                f"image {size[1]}×{size[0]}; give masks of the size of their images"
            )
        yield values


def _where(cell: Any, where: str) -> str:
    return f"--data {cell}" if isinstance(cell, Path) else where


def _size(picture: Any) -> tuple[int, int]:
    """Height and width; of a file without all its pixels being read."""
    if isinstance(picture, dict):
        picture = picture["bytes"] or Path(picture["path"])
    if isinstance(picture, np.ndarray):
        return picture.shape[0], picture.shape[1]
    pillow = require("PIL.Image", extra="compare")
    try:
        with pillow.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
            return opened.height, opened.width
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError):
        height, width, _ = decode(picture).shape  # which says what is wrong
        return height, width


def mask_values(cell: Any, where: str) -> Int[np.ndarray, "h w"]:
    """The value of each pixel: of an array as it is, of an image file its grey level or its place in the palette.

    Raises:
        InputError: no whole numbers from 0, channels that differ, or a file that cannot be decoded.
    """
    if isinstance(cell, dict):
        cell = cell["bytes"] or Path(cell["path"])
    if not isinstance(cell, np.ndarray):
        where = _where(cell, where)
        pillow = require("PIL.Image", extra="compare")
        try:
            with pillow.open(io.BytesIO(cell) if isinstance(cell, bytes) else cell) as picture:
                cell = np.asarray(picture)
        except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
            raise InputError(
                f"{where}: the mask cannot be decoded ({first_line(error)}): remove or replace it"
            ) from None
    if cell.ndim == 3 and (cell == cell[..., :1]).all():
        cell = cell[..., 0]
    if cell.ndim != 2:
        raise InputError(
            f"{where}: the mask has {cell.shape[-1]} channels that differ; give one number for each pixel"
        )
    if cell.dtype == np.bool_:
        cell = cell.astype(np.uint8)
    if not (
        np.isfinite(cell).all() and (cell == np.floor(cell)).all() and cell.min() >= 0 and cell.max() < MOST
    ):
        raise InputError(
            f"{where}: the mask holds {cell.min():g} to {cell.max():g}; give whole numbers from 0 to {MOST - 1}"
        )
    values: np.ndarray = cell.astype(np.int64)
    return values


def pixel_counts(masks: Sequence[Mask], classes: int) -> np.ndarray:
    """How many pixels have each class."""
    counts = (np.bincount(mask.pixels().reshape(-1), minlength=IGNORED + 1)[:classes] for mask in masks)
    total: np.ndarray = np.sum(list(counts), axis=0)
    return total


def read_mask_folders(directory: Path) -> dict[str, Table]:
    """Read ``images/`` with ``masks/`` (or ``annotations/``, ``labels/``) beside it, the two inside folders of splits
    or with such folders in them; empty where there are none. A mask has the name of its image, or that with ``_mask``.

    Raises:
        InputError: an image without a mask or a mask without an image.
    """
    folders = {entry.name.lower(): entry for entry in sorted(directory.iterdir()) if entry.is_dir()}
    images = next((folders[name] for name in IMAGE_FOLDERS if name in folders), None)
    masks = next((folders[name] for name in MASK_FOLDERS if name in folders), None)
    if images is not None and masks is not None:
        parts = {
            entry.name: SPLITS[entry.name.lower()]
            for entry in images.iterdir()
            if entry.name.lower() in SPLITS
        }
        if not parts:
            return {UNSPLIT: _paired(images, masks)}
        return {part: _paired(images / name, masks / name) for name, part in sorted(parts.items())}
    inside = {SPLITS[name]: read_mask_folders(entry) for name, entry in folders.items() if name in SPLITS}
    return {part: tables[UNSPLIT] for part, tables in inside.items() if UNSPLIT in tables}


def _paired(images: Path, masks: Path) -> Table:
    pictures, own = _by_stem(images), _by_stem(masks)
    own = {stem if stem in pictures else stem.removesuffix("_mask"): path for stem, path in own.items()}
    if alone := next(iter(sorted(pictures.keys() ^ own.keys())), None):
        path, other = (pictures[alone], masks) if alone in pictures else (own[alone], images)
        raise InputError(
            f"--data {path} has no partner in {other}: a mask has the name of its image; add it or remove this"
        )
    stems = sorted(pictures)
    return Table({"image": [pictures[s] for s in stems], "mask": [own[s] for s in stems]}, str(images.parent))


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"--data {folder}: no such directory; masks lie as their images do")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS)
    found: dict[str, Path] = {}
    for file in files:
        stem = str(file.relative_to(folder).with_suffix(""))
        if stem in found:
            raise InputError(f"--data {file} and {found[stem]} have one name: keep one of them")
        found[stem] = file
    return found
