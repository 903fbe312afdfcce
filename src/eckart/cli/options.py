"""What options of the command line mean: those that every command has, values from a YAML file, and words with
structure of their own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from eckart.errors import InputError


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a YAML file the defaults of a command.

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
            near = difflib.get_close_matches(str(key), options, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(options)}"
            raise InputError(f"--config {path}: {key!r} is no option of {context.info_name}: {hint}")
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


def pairs(values: Sequence[str] | None, name: str) -> dict[str, str]:
    """``NAME=VALUE`` words as a dictionary.

    Raises:
        InputError: a word without ``=``.
    """
    found = {}
    for word in values or ():
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InputError(f"{name} {word!r}: write it as NAME=VALUE")
        found[key.strip().replace("-", "_")] = value.strip()
    return found


def limits(values: Sequence[str] | None) -> dict[str, int] | None:
    """``--limit train=2000`` words: most examples of each split.

    Raises:
        InputError: another split, or no whole number.
    """
    found = {}
    for split, count in pairs(values, "--limit").items():
        if split not in ("train", "validation", "test") or not count.isdigit():
            raise InputError(f"--limit {split}={count}: write it as train=2000, validation=500 or test=500")
        found[split] = int(count)
    return found or None


def options(values: Sequence[str] | None) -> dict[str, Any]:
    """``--option NAME=VALUE`` words: fields of a method's config, with numbers and booleans as such."""
    return {name: _number_or_yaml(value) for name, value in pairs(values, "--option").items()}


def _number_or_yaml(text: str) -> Any:
    import yaml

    for read in (int, float, yaml.safe_load):
        try:
            return read(text)
        except (ValueError, yaml.YAMLError):
            continue
    return text


def rates(values: Sequence[str] | None) -> list[float] | dict[str, list[float]] | None:
    """``--lr`` words: learning rates for every method, or for each by name.

    Raises:
        InputError: not numbers.
    """
    if not values:
        return None
    try:
        if any("=" in word for word in values):
            named = ((name.strip(), rates) for name, _, rates in (word.partition("=") for word in values))
            return {name: [float(rate) for rate in rates.strip("[] ").split(",")] for name, rates in named}
        return [float(rate) for word in values for rate in word.split(",")]
    except ValueError:
        raise InputError(
            f"--lr {' '.join(values)}: write numbers with commas, or NAME=NUMBERS for each method"
        ) from None


def layers(text: str) -> str | list[int]:
    """``--layers``: "all" and "last" as they are, numbers with commas as a list.

    Raises:
        InputError: neither.
    """
    if text in ("all", "last"):
        return text
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"--layers {text}: write all, last, or numbers with commas, such as 0,3,6") from None


def targets(text: str | None) -> str | list[str] | None:
    """One regular expression or "all-linear" as it is, names as a list."""
    if text is None or text == "all-linear" or set(text) & set("*+?[](){}|^$\\"):
        return text
    return [name.strip() for name in text.split(",") if name.strip()]


Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="YAML file with any of these options; the command line wins.",
        callback=read_config,
        is_eager=True,
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Print the full traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in the output directory.")]
