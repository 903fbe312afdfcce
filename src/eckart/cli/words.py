"""Words with a structure of their own: NAME=VALUE, numbers with commas, names of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eckart.arguments import LARGEST, check_positive
from eckart.data.delimited import Format
from eckart.errors import InputError
from eckart.tasks.options import AUTO


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
        if split not in ("train", "validation", "test") or not count.isdigit() or not int(count):
            raise InputError(f"--limit {split}={count}: write it as train=2000, validation=500 or test=500")
        found[split] = int(count)
    return found or None


def count_or_auto(name: str, text: str | None) -> int | str | None:
    """A whole number of at least 1, or "auto"; None where nothing is given.

    Raises:
        InputError: neither.
    """
    if text is None or text == AUTO:
        return text
    if not text.strip().lstrip("+").isdecimal() or not 1 <= int(text) <= LARGEST:
        raise InputError(f"{name} {text}: give a whole number from 1 to {LARGEST}, or auto")
    return int(text)


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
            return {name: [_rate(rate) for rate in rates.strip("[] ").split(",")] for name, rates in named}
        return [_rate(rate) for word in values for rate in word.split(",")]
    except InputError:
        raise
    except ValueError:
        raise InputError(
            f"--lr {' '.join(values)}: write numbers with commas, or NAME=NUMBERS for each method"
        ) from None


def _rate(word: str) -> float:
    check_positive(lr=(rate := float(word)))
    return rate


def fields(sep: str | None, columns: str | None, encoding: str) -> dict[str, str]:
    """Of ``--sep``, ``--columns`` and ``--encoding`` those that say something.

    Raises:
        InputError: as `Format`.
    """
    Format(sep, columns, encoding)
    given = {"sep": sep, "columns": columns, "encoding": None if encoding == "utf-8" else encoding}
    return {name: value for name, value in given.items() if value is not None}


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
