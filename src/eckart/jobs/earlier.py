"""Is what an output directory holds the same run as the one that is asked for?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from eckart.errors import InputError

T = TypeVar("T")

ELSEWHERE = "choose another directory or pass --overwrite"


def read_earlier(path: Path, kind: str, pick: Callable[[Any], T]) -> T:
    """What a job wrote of an earlier run.

    Args:
        path: the JSON file that says what was run.
        kind: what the run is called in the message, such as "comparison".
        pick: takes what is wanted from the file's content.

    Raises:
        InputError: the file is no such run's.
    """
    try:
        return pick(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"--output {path.parent}: its {path.name} is not a {kind}'s: {ELSEWHERE}") from None


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], told: Mapping[str, str] | None = None
) -> list[str]:
    """What tells two runs apart, a phrase for each setting: "steps is 4 there and 8 here".

    Args:
        there: the settings of the earlier run, as they were read.
        here: those of this one, plain values that JSON gives back as they are.
        told: the whole phrase for a setting whose values tell a person nothing, such as a digest.
    """
    return [
        (told or {}).get(name, f"{name} is {there.get(name)} there and {here.get(name)} here")
        for name in {**here, **there}
        if here.get(name) != there.get(name)
    ]


def check_same(
    directory: Path,
    kind: str,
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    told: Mapping[str, str] | None = None,
) -> None:
    """Refuse a directory that holds another run; names what differs, as `differences` does.

    Raises:
        InputError: a setting differs.
    """
    if found := differences(there, here, told):
        raise InputError(f"--output {directory} holds another {kind}: {'; '.join(found)}: {ELSEWHERE}")
