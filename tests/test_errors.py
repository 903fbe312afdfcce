"""Other people's errors told in one line."""

from __future__ import annotations

import pytest

from eckart.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("  one\ntwo"), "one"),
        (ValueError("\n\none"), "one"),
        (KeyError(), "KeyError"),
        (OSError(" \n"), "OSError"),
    ],
)
def test_first_line(error: Exception, line: str) -> None:
    assert first_line(error) == line
