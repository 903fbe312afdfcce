"""Data sets read from what a user has: a file, a directory, or a name on the hub; checked and split (see `splits`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from eckart.data import images
from eckart.data.chat import chat_columns, read_conversations
from eckart.data.choices import CHOICES, read_choices
from eckart.data.columns import choose_columns, label_columns, pick_columns
from eckart.data.delimited import AS_ENDING, Format
from eckart.data.images import SPLITS, UNSPLIT
from eckart.data.labels import CLASSES, SEVERAL, Labels, encode_labels
from eckart.data.masks import MASKS, Mask, pixel_counts, read_mask_folders, read_masks
from eckart.data.sets import from_datasets, from_hub
from eckart.data.splits import PARTS, Split, complete
from eckart.data.stdlib_docs import ACTS, RETURNS, stdlib_docstrings
from eckart.data.tables import Table, is_table, read_table
from eckart.data.tags import TAGS, read_tags
from eckart.errors import InputError, first_line
from eckart.extras import require
from eckart.hub import is_path

CHAT = "chat"
"""A target as `CLASSES` and its like are: what the assistant says."""
STRUCTURED = {CHOICES: read_choices, TAGS: read_tags, MASKS: read_masks}
"""Targets that are read from columns of their own, and by what."""


@dataclass(frozen=True)
class Data:
    """A data set: ``kind`` is "text", "image", or the target where that has columns of its own; ``labels`` are the
    names of classes, None without any."""

    name: str
    kind: str
    splits: dict[str, Split]
    labels: list[str] | None = None
    target: str | None = None
    """What is to be told of an example: see `eckart.data.labels`; None for text that has no labels."""
    notes: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    """Those that were read, where the data has columns: of the input, and last of the label if there is one."""

    def counts(self, part: str) -> dict[str, int]:
        """How many examples (words, pixels) of a split have each label."""
        labels, names = self.splits[part].labels or [], self.labels or []
        if self.target == SEVERAL:
            counts = np.sum(labels, axis=0)
        elif self.target == MASKS:
            counts = pixel_counts(labels, len(names))
        else:
            flat = [tag for tags in labels for tag in tags] if self.target == TAGS else labels
            counts = np.bincount(flat, minlength=len(names))
        return dict(zip(names, counts.tolist(), strict=True))

    def digest(self) -> str:
        """SHA-256 over the content of every split: equal for equal examples, wherever they lie."""
        sha = hashlib.sha256(repr(self.labels).encode())
        for part in PARTS:
            labels: Sequence[Any] = self.splits[part].labels or ()
            masks = [label.cell for label in labels if isinstance(label, Mask)]
            sha.update(part.encode() + (b"" if masks else repr(self.splits[part].labels).encode()))
            for item in (*self.splits[part].inputs, *masks):
                if isinstance(item, dict) and "bytes" in item:
                    item = item["bytes"] or Path(item["path"])
                if isinstance(item, Path):
                    item = item.read_bytes()
                elif isinstance(item, np.ndarray):
                    item = repr(item.shape).encode() + np.ascontiguousarray(item).tobytes()
                elif not isinstance(item, bytes):
                    item = repr(item).encode()
                sha.update(len(item).to_bytes(8, "little") + item)
        return sha.hexdigest()


def stdlib_data() -> Data:
    """The embedded set: docstrings of functions, labelled by whether they return a value (see `stdlib_docs`)."""
    found = stdlib_docstrings()
    names = [ACTS, RETURNS]
    index = {name: i for i, name in enumerate(names)}
    splits = {
        part: Split([d.text for d in docs], [index[d.label] for d in docs], [d.module for d in docs])
        for part, docs in found.items()
    }
    return Data("the docstrings of Python's standard library", "text", splits, names, CLASSES)


def read_data(
    source: str | Path | None,
    *,
    labelled: bool | None = None,
    target: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    sep: str | None = None,
    columns: str | None = None,
    encoding: str = "utf-8",
    seed: int = 0,
) -> Data:
    """Read a data set and give it train, validation and test splits.

    Args:
        source: a file (CSV, TSV, JSON, JSON lines, Parquet, text, .npz), a directory (files named by split, idx files,
            a folder of images per class, a saved `datasets` set), a hub name (``owner/name`` or ``owner/name:config``);
            None is the embedded set.
        labelled: True needs labels, False ignores them, None takes them where they are.
        target: what is to be told, such as `CLASSES` or `CHAT`; as the data look when None.
        text_column: the column of texts, or two joined by a comma for pairs; found by its name when None.
        label_column: the column of labels; found by its name when None.
        sep: what stands between the fields of a text file, such as ``";"`` or ``"tab"``; as its ending says when None.
        columns: names of the columns of a text file that has no header, with commas.
        encoding: of a text file.
        seed: seed of every random cut.

    Raises:
        InputError: anything wrong with the source, its columns, labels or splits.
    """
    form = Format(sep, columns, encoding)
    if source is None:
        form.refuse("what is read without --data", "none")
        if target not in (None, CLASSES):
            raise InputError(
                "--data is left out, and the built-in data are for classification or for their text alone"
            )
        return without_labels(stdlib_data()) if labelled is False else stdlib_data()
    tables = locate(source, form)
    empty = next((table for table in tables.values() if not len(table)), None)
    if empty is not None:
        raise InputError(f"--data {empty.source} has no rows")
    first = next(iter(tables.values()))
    tried = list(STRUCTURED) if target is None and labelled is None else [target]
    for wanted in (name for name in tried if name in STRUCTURED):
        data = _structured(str(source), tables, wanted, (text_column, label_column), target, seed)
        if data is not None:
            return data
    if target == CHAT or (labelled is None and target is None and label_column is None):
        labels = () if target == CHAT else label_columns(first, None, None)
        if not labels and (taken := chat_columns(first, text_column, wanted=target == CHAT)):
            return _conversations(str(source), tables, taken, text_column, seed)
    return _labelled(str(source), tables, (text_column, label_column, labelled), target, seed)


def _structured(
    source: str,
    tables: Mapping[str, Table],
    wanted: str,
    asked: tuple[str | None, str | None],
    target: str | None,
    seed: int,
) -> Data | None:
    """Examples of a target with columns of its own; None where the tables hold none."""
    first, notes = next(iter(tables.values())), list[str]()
    if target is None and set(asked) - {None, *first.columns}:
        return None
    found = STRUCTURED[wanted](tables, *asked, notes, wanted=wanted == target)
    if found is None:
        return None
    splits = complete(found.splits, None, seed, notes)
    if left := [name for name in first.columns if name not in found.columns]:
        notes.append(f"columns that are not used: {', '.join(left)}")
    return Data(source, wanted, splits, found.names, wanted, notes, found.columns)


def _conversations(
    source: str, tables: Mapping[str, Table], taken: list[str], text_column: str | None, seed: int
) -> Data:
    """Conversations; where the splits come from different sets each has columns of its own."""
    notes: list[str] = []
    found = {part: chat_columns(table, text_column, wanted=True) for part, table in tables.items()}
    splits = {part: Split(read_conversations(table, found[part])) for part, table in tables.items()}
    notes += [f"{part}: columns {', '.join(names)}" for part, names in found.items() if names != taken]
    return Data(source, CHAT, complete(splits, None, seed, notes), None, CHAT, notes, taken)


def _labelled(
    source: str,
    tables: Mapping[str, Table],
    asked: tuple[str | None, str | None, bool | None],
    target: str | None,
    seed: int,
) -> Data:
    """Texts or images with their labels, or without any."""
    notes: list[str] = []
    chosen: dict[str, tuple[Sequence[Any], Labels | None]] = {
        part: pick_columns(table, *asked) for part, table in tables.items()
    }
    hidden = [
        part for part, (_, labels) in chosen.items() if labels and all(label == "-1" for label in labels)
    ]
    for part in hidden:
        del chosen[part]
        notes.append(f"the {part} split has hidden labels (all -1) and is left out")
    if not chosen:
        raise InputError(f"--data {source}: every label is -1, there is nothing to learn from")
    encoded = encode_labels({part: labels for part, (_, labels) in chosen.items()}, tables, notes, target)
    splits = {part: Split(inputs, encoded.columns[part]) for part, (inputs, _) in chosen.items()}
    kind = "image" if images.is_image(next(iter(splits.values())).inputs[0]) else "text"
    splits = complete(splits, encoded.names if encoded.target == CLASSES else None, seed, notes)
    read = next(iter(tables.values()))
    taken = choose_columns(read, *asked) if len(read.columns) > 1 else []
    if left := [name for name in read.columns if taken and name not in taken]:
        notes.append(f"columns that are not used: {', '.join(left)}")
    return Data(source, kind, splits, encoded.names, encoded.target, notes, taken)


def without_labels(data: Data) -> Data:
    """The same examples as plain text."""
    return replace(
        data,
        splits={part: replace(s, labels=None) for part, s in data.splits.items()},
        labels=None,
        target=None,
    )


def locate(source: str | Path, form: Format = AS_ENDING) -> dict[str, Table]:
    """The tables of a source by split (``"all"`` when it is not split)."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _directory(path, form)
    if path.is_file() and path.suffix.lower() != ".npz":
        return {UNSPLIT: read_table(path, form)}
    check_source(source)
    form.refuse(source, "none")
    if path.is_file():
        return images.read_arrays(path)
    name, _, config = str(source).partition(":")
    return from_hub(name, config or None)


def check_source(source: str | Path | None, form: Mapping[str, str] | None = None) -> None:
    """Refuse what is not there and cannot be a name on the hub.

    Args:
        source: as in `read_data`.
        form: what is said of a text file: ``sep``, ``columns`` and ``encoding``, those that are given.

    Raises:
        InputError: no such file or directory; a form of what is no file.
    """
    if source is None:
        Format(**(form or {})).refuse("what is read without --data", "none")
        return
    path, name = Path(source).expanduser(), str(source).partition(":")[0]
    if path.is_dir() or path.is_file():
        return
    file = path.suffix.lower() in (".npz", ".gz") or is_table(path)
    if file or is_path(source) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise InputError(f"--data {source}: no such file or directory")


def _directory(path: Path, form: Format) -> dict[str, Table]:
    if files := _files_by_split(path, form):
        return {part: _join(shards, form) for part, shards in files.items()}
    form.refuse(path, "a directory that holds none named by split")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        datasets = require("datasets", extra="compare")
        try:
            return from_datasets(datasets.load_from_disk(str(path)), str(path))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"--data {path} is a damaged `datasets` directory: {first_line(error)}"
            ) from None
    if images.is_idx_directory(path):
        return images.read_idx_directory(path)
    if folder := read_mask_folders(path) or images.read_image_folder(path):
        return folder
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise InputError(
        f"--data {path} has no train/validation/test files, no idx files, no folders of images and no saved data set; "
        f"it holds {held}: name one file, or rename them"
    )


def _files_by_split(path: Path, form: Format) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir()):
        stem = re.sub(r"-\d+-of-\d+$", "", file.name.partition(".")[0]).lower()
        if stem in SPLITS and file.is_file() and (is_table(file, form) or file.suffix == ".npz"):
            files.setdefault(SPLITS[stem], []).append(file)
    return files


def _join(shards: list[Path], form: Format) -> Table:
    if len(shards) > 1 and not all(re.search(r"-\d+-of-\d+\.", shard.name) for shard in shards):
        raise InputError(
            f"--data {shards[0].parent}: {' and '.join(s.name for s in shards)} are the same split; keep one of them"
        )
    if any(shard.suffix == ".npz" for shard in shards):
        form.refuse(shards[0], "a .npz file")
    tables = [
        images.read_arrays(shard).get(UNSPLIT, Table({}, str(shard)))
        if shard.suffix == ".npz"
        else read_table(shard, form)
        for shard in shards
    ]
    if len({tuple(table.columns) for table in tables}) > 1:
        raise InputError(f"--data {shards[0].parent}: the parts of {shards[0].name} differ in their columns")
    columns: dict[str, Sequence[Any]] = {
        name: [x for table in tables for x in table.columns[name]] for name in tables[0].columns
    }
    return Table(columns, tables[0].source)
