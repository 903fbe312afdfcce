"""The files of a comparison, read back: its table of runs, its curves and what it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.errors import InputError
from eckart.extras import require
from eckart.jobs.compare.judgement import Terms
from eckart.jobs.compare.leaderboard import tidy
from eckart.jobs.compare.paired import LEVEL

if TYPE_CHECKING:
    import pandas as pd


def read_results(directory: Path) -> pd.DataFrame:
    """The table of runs of a study directory.

    Raises:
        InputError: ``results.csv`` is absent or is not a table of runs.
    """
    return tidy(read_table(directory / "results.csv"))


def read_table(path: Path) -> pd.DataFrame:
    """A CSV table whose texts stay texts."""
    pd = require("pandas", extra="compare")
    texts = {"run_id": str, "method": str, "label": str, "options": str, "budget": str, "error": str}
    try:
        return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=["", "nan", "NaN"])
    except FileNotFoundError:
        raise InputError(f"{path} is not there: give the --output directory of a comparison") from None
    except (ValueError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a CSV table ({reason}): run the comparison again") from None


def read_ranks(directory: Path) -> dict[str, dict[str, int]]:
    """The rank of each layer, by run; empty where no method has ranks or a study was made before they were kept."""
    if not (directory / "ranks.csv").exists():
        return {}
    table = read_table(directory / "ranks.csv")
    try:
        runs = table.groupby("run_id", sort=False)
        return {
            str(run): dict(zip(part["layer"], part["rank"].astype(int), strict=True)) for run, part in runs
        }
    except (KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{directory / 'ranks.csv'} is no table of ranks ({reason}): run the comparison again"
        ) from None


def read_study(path: Path) -> dict[str, Any]:
    """What compare.json says."""
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is not there: give the --output directory of a comparison") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): run the comparison again") from None
    if not isinstance(study, dict):
        raise InputError(f"{path} holds no JSON object: run the comparison again")
    return study


def read_terms(study: Mapping[str, Any]) -> Terms:
    """How a comparison is judged, as compare.json says; the plain terms where it was made before there were others."""
    return Terms(
        float(study.get("level") or LEVEL),
        dict(study.get("at_most") or {}),
        str(study.get("cost") or "bytes"),
        dict(study.get("dropped") or {}),
    )
