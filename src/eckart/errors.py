"""The one exception that means "what you gave cannot be used, and here is what to change"."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: the message is one line that names the argument, its value and the remedy."""


def first_line(error: BaseException) -> str:
    """The message of somebody else's error, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
