"""The scores of single test examples: packed into a run's record, and as a table beside the results."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from eckart.errors import InputError, first_line
from eckart.extras import require

if TYPE_CHECKING:
    import pandas as pd

    from eckart.tasks.task import Task

SCORES, PREDICTIONS = "examples", "predictions"
"""Where a run's record holds them."""


@dataclass(frozen=True)
class Examples:
    """What runs made of the test examples.

    Args:
        scores: of each example, by run.
        groups: the number of each example's group, where they come in groups.
        said: the label that a run gave each example, by run, where it gives labels.
        labels: the true ones.
    """

    scores: Mapping[str, Float[np.ndarray, " n"]] = field(default_factory=dict)
    groups: Int[np.ndarray, " n"] | None = None
    said: Mapping[str, Sequence[str]] = field(default_factory=dict)
    labels: Sequence[str] | None = None


def pack(values: Sequence[float] | np.ndarray, kind: type = np.float32) -> str:
    """Numbers as a short text: right and wrong of 1,630 examples take some 400 characters."""
    raw = np.ascontiguousarray(values, dtype=np.dtype(kind).newbyteorder("<")).tobytes()
    return base64.b64encode(zlib.compress(raw, 9)).decode("ascii")


def unpack(text: str, kind: type = np.float32) -> np.ndarray:
    """The numbers of `pack`."""
    raw = zlib.decompress(base64.b64decode(text))
    return np.frombuffer(raw, dtype=np.dtype(kind).newbyteorder("<")).astype(
        float if kind == np.float32 else int
    )


def group_numbers(names: Sequence[str] | None) -> Int[np.ndarray, " n"] | None:
    """A number for each example's group; None where there are fewer than two groups."""
    if names is None or len(set(names)) < 2:
        return None
    numbers: np.ndarray = np.unique(list(names), return_inverse=True)[1]
    return numbers


def of_records(records: Mapping[str, Mapping[str, Any]], task: Task) -> Examples:
    """The scores that the records of a study hold, with those of the trivial predictor."""
    scores = {run: unpack(record[SCORES]) for run, record in records.items() if record.get(SCORES)}
    return Examples(scores, group_numbers(task.groups))


def table(records: Mapping[str, Mapping[str, Any]], task: Task) -> pd.DataFrame:
    """What ``examples.parquet`` holds: run, example, group, score; prediction and label where labels are predicted."""
    pd = require("pandas", extra="compare")
    groups, frames = task.groups, []
    for run, record in records.items():
        if not record.get(SCORES):
            continue
        scores = unpack(record[SCORES])
        columns: dict[str, Any] = {"run_id": run, "example": np.arange(len(scores))}
        columns |= {"group": list(groups) if groups else None, "score": scores}
        if record.get(PREDICTIONS):
            names, truth = np.array(task.labels), [task.test[i]["labels"] for i in range(len(scores))]
            columns |= {"prediction": names[unpack(record[PREDICTIONS], np.int32)], "label": names[truth]}
        frames.append(pd.DataFrame(columns))
    plain = ["run_id", "example", "group", "score"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=plain)


def read_examples(path: Path) -> Examples:
    """The scores of ``examples.parquet``; none where a study was made before there was one.

    Raises:
        InputError: it is not such a table.
    """
    pd = require("pandas", extra="compare")
    if not path.exists():
        return Examples()
    try:
        found = pd.read_parquet(path)
        found[["run_id", "example", "group", "score"]]
    except (ValueError, OSError, KeyError) as error:
        raise InputError(
            f"{path} is no table of examples ({first_line(error)}): run the comparison again"
        ) from None
    return from_table(found)


def from_table(found: pd.DataFrame) -> Examples:
    """The scores of a table as `table` makes it."""
    ordered = found.sort_values("example", kind="stable")
    runs = dict(list(ordered.groupby("run_id", sort=False)))
    scores = {str(run): part["score"].to_numpy(dtype=float) for run, part in runs.items()}
    if len({len(values) for values in scores.values()}) > 1:
        raise InputError("examples.parquet holds runs on different test splits: run the comparison again")
    names = next((list(part["group"]) for part in runs.values() if part["group"].notna().all()), None)
    told = found.columns.isin(["prediction", "label"]).sum() == 2
    labelled = {run: part for run, part in runs.items() if told and part["prediction"].notna().all()}
    said = {str(run): list(part["prediction"]) for run, part in labelled.items()}
    labels = next((list(part["label"]) for part in labelled.values()), None)
    return Examples(scores, group_numbers(names), said, labels)
