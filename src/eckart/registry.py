"""How a class of options is entered in the registry of its room."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

from eckart.arguments import checked
from eckart.errors import InputError

C = TypeVar("C", bound="type")


def entry(registry: MutableMapping[str, Any], noun: str, slug: str, **facts: str) -> Callable[[C], C]:
    """Class decorator that makes a class known by its slug; its constructor holds what it is given to the annotations
    (see `checked`).

    Args:
        registry: slug -> class.
        noun: what its kind is called in messages.
        slug: its name on the command line and in the registry.
        facts: what the tables tell of it, set as its attributes.

    Raises:
        InputError: the slug is taken.
    """

    def decorate(entered: C) -> C:
        if slug in registry:
            raise InputError(
                f"{noun} {slug!r} is registered already: choose another slug for {entered.__name__}"
            )
        for name, value in ({"slug": slug} | facts).items():
            setattr(entered, name, value)
        entered.__init__ = checked(entered.__init__)  # type: ignore[misc]
        registry[slug] = entered
        return entered

    return decorate
