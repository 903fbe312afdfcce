"""The one exception that means "what you gave cannot be used, and here is what to change"."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: the message is one line that names the argument, its value and the remedy."""
