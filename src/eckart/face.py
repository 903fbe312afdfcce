"""The face of a room: its public names, typed for editors and mypy, each loaded when it is first used.

The imports under ``if TYPE_CHECKING:`` in a room's ``__init__.py`` are the list, written once: type checkers read it, and
so does `lazy` when the room is imported.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eckart.extras import require


def lazy(
    room: str, needs: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a room.

    Args:
        room: its ``__name__``.
        needs: packages that the late names need, each with the extra that brings it.
    """
    module = sys.modules[room]
    origins = _late_imports(Path(str(module.__file__)).read_text("utf-8"))

    def load(name: str) -> Any:
        if name not in origins:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        for package, extra in (needs or {}).items():
            require(package, extra=extra)
        origin, attribute = origins[name]
        found: Any = importlib.import_module(origin)
        found = found if attribute is None else getattr(found, attribute)
        setattr(module, name, found)
        return found

    return load, lambda: sorted(module.__all__)


def _late_imports(source: str) -> dict[str, tuple[str, str | None]]:
    """Where each name under ``if TYPE_CHECKING:`` comes from: a module, and the attribute in it, None for a room."""
    found: dict[str, tuple[str, str | None]] = {}
    for block in ast.parse(source).body:
        if not (
            isinstance(block, ast.If)
            and isinstance(block.test, ast.Name)
            and block.test.id == "TYPE_CHECKING"
        ):
            continue
        for node in block.body:
            if isinstance(node, ast.ImportFrom) and node.module == "eckart":
                found |= {alias.name: (f"eckart.{alias.name}", None) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    return found
