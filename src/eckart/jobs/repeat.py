"""A run as the options of the command that repeats it: written beside its results, and read back by ``--config``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eckart.files import atomic_write

CONFIG = "config.yaml"
_LISTED = {"options": "option", "optimizer_options": "optimizer-option", "cuts": "cut"}
_NOT_GIVEN = ("fingerprint", "task", "loram", *_LISTED)


def adapt_options(job: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `eckart adapt` that give the run of a run.json."""
    found = {name: value for name, value in job.items() if name not in _NOT_GIVEN}
    found |= {option: job[name] for name, option in _LISTED.items() if job.get(name)}
    task = dict(job["task"])
    found["limit"] = task.pop("limits", None)
    found |= task
    if loram := job.get("loram"):
        found |= {"loram": loram["ratio"]}
        found |= {f"loram-{name}": loram[name] for name in ("criterion", "align", "int8")}
    return _said(found)


def pretrain_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `eckart pretrain` that give a run with these arguments."""
    return _said({_LISTED.get(name, name): value for name, value in given.items()})


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they are written; what is empty or off is left out."""
    return {
        name.replace("_", "-"): value
        for name, value in values.items()
        if value is not None and value is not False and value not in ([], {})
    }


def compared(command: str) -> str:
    """Which command a command line of a comparison calls: ``compare`` or ``compare compression``."""
    words = shlex.split(command)[1:3]
    return " ".join(word for word in words if not word.startswith("--"))


def compare_options(command: str) -> dict[str, Any]:
    """The options of a command line of a comparison but the directory of its results."""
    words = shlex.split(command)[1 + len(compared(command).split()) :]
    found: dict[str, Any] = {}
    while words:
        name, bare = words.pop(0).removeprefix("--"), not words or words[0].startswith("--")
        value: Any = True if bare else words.pop(0)
        if name in found:
            value = [*(found[name] if isinstance(found[name], list) else [found[name]]), value]
        found[name] = value
    found.pop("output", None)
    return found


def write_config(path: Path, command: str, options: Mapping[str, Any]) -> None:
    """Write the options as a file that ``--config`` takes."""
    import yaml

    told = f"# Repeats the run: eckart {command} --config {CONFIG} --output DIR\n"
    with atomic_write(path) as file:
        file.write_text(
            told + yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )


def options_of_results(values: Mapping[str, Any], command: str) -> dict[str, Any] | None:
    """The options that a run.json of `eckart adapt` or a compare.json stands for; None where it is neither.

    Args:
        values: what the file holds.
        command: that takes them.
    """
    if command == "adapt" and {"fingerprint", "task", "method"} <= set(values):
        return adapt_options(values)
    if {"command", "identity"} <= set(values) and command == compared(str(values["command"])):
        return compare_options(str(values["command"]))
    return None
