"""Sets of the library `datasets`: saved in a directory, or on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eckart.data.images import SPLITS, UNSPLIT
from eckart.data.tables import Table
from eckart.errors import InputError, first_line
from eckart.extras import require
from eckart.hub import download


def from_hub(name: str, config: str | None) -> dict[str, Table]:
    """The tables of a set on the hub by split.

    Raises:
        InputError: it cannot be had.
    """
    datasets = require("datasets", extra="compare")
    if not Path(datasets.config.HF_DATASETS_CACHE, name.replace("/", "___")).is_dir():
        # fails at once where load_dataset would try again and again
        download(name, ["README.md"], f"--data {name}", kind="dataset")
    try:
        found = datasets.load_dataset(name, config)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"--data {name} cannot be read from the hub, which needs network ({first_line(error)})"
        ) from None
    return from_datasets(found, name)


def from_datasets(found: Any, source: str) -> dict[str, Table]:
    """The tables of a `Dataset` or `DatasetDict` by split, its classes by name.

    Raises:
        InputError: splits of which none has a known name.
    """
    parts = (
        {SPLITS[k.lower()]: v for k, v in found.items() if k.lower() in SPLITS}
        if isinstance(found, dict)
        else {}
    )
    if isinstance(found, dict) and not parts:
        raise InputError(
            f"--data {source} has the splits {', '.join(found)}; one must be train, validation or test"
        )
    return {part: _features_to_table(rows, source) for part, rows in (parts or {UNSPLIT: found}).items()}


def _features_to_table(rows: Any, source: str) -> Table:
    columns: dict[str, Sequence[Any]] = rows.with_format(None).to_dict()
    for name, feature in rows.features.items():
        if names := getattr(feature, "names", None):
            columns[name] = [_named(x, names) for x in columns[name]]
        elif names := getattr(getattr(feature, "feature", None), "names", None):
            columns[name] = [[_named(x, names) for x in cell or ()] for cell in columns[name]]
    return Table(columns, source)


def _named(value: Any, names: Sequence[str]) -> Any:
    """The name of a class; a number that stands for none as it is."""
    return names[value] if value is not None and 0 <= value < len(names) else value
