"""The registry of a room: a class by its slug, with its facts, its options checked."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from eckart.errors import InputError
from eckart.registry import entry


@dataclass
class Options:
    r: int = 1


def test_a_class_is_entered_with_its_facts() -> None:
    registry: dict[str, type] = {}
    assert entry(registry, "rule", "own", title="Own", paper="us")(Options) is Options
    assert registry == {"own": Options}
    assert (Options.slug, Options.title, Options.paper) == ("own", "Own", "us")  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="r is"):
        Options(r="many")  # type: ignore[arg-type]


def test_a_slug_is_taken_once() -> None:
    registry: dict[str, type] = {"own": int}
    with pytest.raises(InputError, match="rule 'own' is registered already: choose another slug for Options"):
        entry(registry, "rule", "own")(Options)
    assert registry == {"own": int}
