"""The directory of a comparison: whose it is, how its files are written, and the command that repeats it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eckart.catalog import methods
from eckart.files import Inputs, atomic_write, check_apart, check_output, check_unattended, remove_owned
from eckart.jobs.compare.names import ADAMW, AT, LABELS
from eckart.jobs.compare.peft_methods import peft_names
from eckart.jobs.compare.protocols import BOARD
from eckart.jobs.compare.study import without_password
from eckart.jobs.earlier import check_same, read_earlier
from eckart.jobs.repeat import CONFIG
from eckart.tasks.smaller import CALIBRATION

DATABASE, ABOUT = "study.db", "compare.json"
RESULTS, TABLE, EXAMPLES, CURVES, RANKS, REPORT, ADAPTERS = (
    "results.csv",
    "results.parquet",
    "examples.parquet",
    "curves.csv",
    "ranks.csv",
    "report.html",
    "adapters",
)
_SAVED = ("adapter_config.json", "adapter_model.safetensors", "README.md")


def check_directory(directory: Path, overwrite: bool, inputs: Inputs | None = None) -> Path:
    """Refuse a directory with other things in it, or that has to do with what is read, before anything is loaded."""
    check_apart(directory, inputs or {})
    if directory.is_dir() and all(entry.name.startswith(f".{ABOUT}") for entry in directory.iterdir()):
        return directory  # another worker is writing its first file
    if overwrite:
        check_unattended(directory)
    if overwrite or not (directory / ABOUT).is_file():
        check_output(directory, overwrite=overwrite)
    return directory


def begun(directory: Path, about: Mapping[str, Any]) -> str | None:
    """When the comparison in a directory was begun; None when there is none.

    Args:
        directory: of a comparison, or empty.
        about: what ``compare.json`` is to say; its ``identity`` and task must be those of the one that is there.

    Raises:
        InputError: it holds another comparison; names what differs.
    """
    if not (directory / ABOUT).is_file():
        return None
    started, task, there = read_earlier(directory / ABOUT, "comparison", _identity)
    _, asked, here = _identity({**about, "started": ""})
    names = [f"{part['model']} on {part['data']}" for part in (task, asked)]
    changed = f"are {names[0]} there and {names[1]} here" if names[0] != names[1] else "have changed"
    told = {"fingerprint": f"model and data {changed}"}
    if "plan" not in there:
        told["plan"] = "it is of an earlier version, which planned its runs otherwise, and can only be read"
    check_same(directory, "comparison", there, here, told)
    return started


def _identity(about: Mapping[str, Any]) -> tuple[str, dict[str, str], dict[str, Any]]:
    """When a comparison was begun, its task, and what decides its numbers."""
    task = {name: str(about["task"][name]) for name in ("model", "data", "fingerprint")}
    return str(about["started"]), task, {"fingerprint": task["fingerprint"], **about["identity"]}


def clear(directory: Path) -> None:
    """Remove the files of a comparison, and nothing else."""
    slugs = [method.slug for method in methods("adapters")]
    plain = (*LABELS, *slugs, *peft_names())
    names = (*plain, *(f"{slug}+*" for slug in slugs), *(f"{name}{AT}*" for name in plain))
    saved = [f"{ADAPTERS}/{name}/{file}" for name in names for file in _SAVED]
    files = (f"{DATABASE}*", ABOUT, CONFIG, RESULTS, TABLE, EXAMPLES, CURVES, RANKS, REPORT, BOARD)
    remove_owned(directory, (*files, *saved))


def command_line(arguments: Mapping[str, Any], command: str = "compare") -> str:
    """The command line that repeats a call; what stands at its default is left out."""
    words = ["eckart", *command.split()]
    plain: dict[str, Any] = {
        "methods": "all",
        "budget": "0.5%",
        "kind": "auto",
        "output": "eckart-compare",
        "cost": "bytes",
        "encoding": "utf-8",
        "optimizer": ADAMW,
        "generate": 0,
        "steps": 0,
        "calibration": CALIBRATION,
    }
    for name, value in arguments.items():
        value = str(value) if isinstance(value, Path) else value
        if name in ("overwrite", "progress", "workers") or value == plain.get(name) or value is False:
            continue
        option = "--lr" if name == "learning_rates" else f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                words += ["--limit" if name == "limits" else option, f"{key}={_shown(item)}"]
        elif name == "storage":
            words += [option, without_password(value)]
        else:
            words += [option, _shown(value)]
    return shlex.join(words)


def worker_words(arguments: Mapping[str, Any]) -> list[str]:
    """The words of a command that does the same beside this process, with the password of its storage."""
    storage = arguments.get("storage")
    given = {name: value for name, value in arguments.items() if name != "storage"}
    return shlex.split(command_line(given))[1:] + (["--storage", storage] if storage else [])


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def now() -> str:
    """The time, as files say it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_about(directory: Path, about: Mapping[str, Any]) -> None:
    """Write ``compare.json``."""
    with atomic_write(directory / ABOUT) as path:
        path.write_text(json.dumps(about, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
