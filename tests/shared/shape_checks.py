"""What `make shapes` adds to the tests: annotations are enforced, jaxtyping's shapes by beartype.

An int may stand where a float is asked for, as PEP 484 says. Where a test expects bad input to be refused, it may be an
annotation that refuses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_raises = pytest.raises


@contextmanager
def raises_or_refuses(expected: Any, **options: Any) -> Iterator[pytest.ExceptionInfo[Any]]:
    """`pytest.raises`, or an argument that does not fit its annotation."""
    try:
        with _raises(expected, **options) as caught:
            yield caught
    except TypeCheckError:
        if not issubclass(expected, ValueError):
            raise


def pytest_configure() -> None:
    pytest.raises = raises_or_refuses
