"""What is measured and where it is written, checked before a model or texts are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eckart.arguments import check_least
from eckart.data.splits import PARTS
from eckart.errors import InputError
from eckart.files import Inputs, check_apart, check_output

ABOUT = "measure.json"


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a model besides its files and the texts; see `measure`."""

    metrics: list[str]
    layers: str | list[int]
    split: str
    max_length: int
    limit: int
    skip_first: int
    window: bool
    cka: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.layers, str) and self.layers not in ("all", "last"):
            raise InputError(f"layers is {self.layers!r}: give all, last, or numbers such as 0,3,6")
        if self.split not in (*PARTS, "all"):
            raise InputError(f"split is {self.split!r}: choose {', '.join(PARTS)}, or all of them: all")
        if self.limit < 2:
            raise InputError(f"limit is {self.limit}: give at least 2 texts, one has no spread")
        if self.max_length < 2:
            raise InputError(f"max_length is {self.max_length}: give at least 2 tokens")
        check_least(2, limit=self.limit, max_length=self.max_length)
        if not 0 <= self.skip_first <= self.max_length - 2:
            raise InputError(
                f"skip_first is {self.skip_first}: give 0 to {self.max_length - 2}, so that two tokens of a text of "
                f"{self.max_length} are left"
            )


def inputs_of(models: Sequence[str | Path | None], data: str | Path | None) -> dict[str, str | Path | None]:
    """What a measurement reads, for `check_apart`."""
    return {
        "--data": data,
        **{f"--model ({i + 1})" if i else "--model": model for i, model in enumerate(models)},
    }


def check_directory(directory: Path, overwrite: bool, inputs: Inputs) -> None:
    """Refuse a directory that holds anything but a measurement, unless it may be replaced.

    Raises:
        InputError: naming it, or an input that it is, holds or lies in.
    """
    check_apart(directory, inputs)
    if overwrite or not (directory / ABOUT).is_file():
        check_output(directory, overwrite=overwrite)
