"""Options of a command from a YAML file, or from what an earlier run wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from eckart.arguments import hint
from eckart.errors import InputError
from eckart.jobs.repeat import options_of_results


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a YAML file, or of the run.json or compare.json of an earlier run, the defaults of a command.

    Raises:
        InputError: a file that cannot be read, or a key that is no option of the command.
    """
    if path is None:
        return None
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config {path} cannot be read: {error}") from None
    if not isinstance(values, dict | None):
        raise InputError(f"--config {path} must hold 'option: value' lines, not a {type(values).__name__}")
    values = options_of_results(values or {}, str(context.info_name)) or values
    options = {
        long.removeprefix("--"): parameter
        for parameter in context.command.params
        if parameter.name not in ("config", "debug")
        for long in parameter.opts
    }
    defaults = {}
    for key, value in (values or {}).items():
        parameter = options.get(str(key).replace("_", "-"))
        if parameter is None:
            known = hint(str(key), options)
            raise InputError(f"--config {path}: {key!r} is no option of {context.info_name}: {known}")
        if value is not None:
            defaults[parameter.name] = _as_written(value, getattr(parameter, "multiple", False))
    context.default_map = defaults
    return path


def _as_written(value: Any, multiple: bool) -> Any:
    """A YAML value as the words it would have been: NAME=VALUE for a mapping, commas in the list of one option."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        shown = (
            (key, f"[{', '.join(map(str, x))}]" if isinstance(x, list) else x) for key, x in value.items()
        )
        value = [f"{key}={text}" for key, text in shown]
    words = [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return words if multiple else ",".join(words)
