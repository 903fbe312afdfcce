"""eckart: every way of using low-rank and structured weights, behind interfaces you already know.

Rooms are imported when they are first used, and PEFT learns our methods as soon as both it and we are imported.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from eckart import _peft_hook
from eckart.errors import InputError

if TYPE_CHECKING:
    from eckart.adapters import adapt
    from eckart.catalog import MethodInfo, methods

_FACE = {
    "MethodInfo": "eckart.catalog",
    "adapt": "eckart.adapters",
    "compare": "eckart.jobs.compare.comparison",
    "federate": "eckart.jobs.federate.federating",
    "methods": "eckart.catalog",
}
_ROOMS = (
    "adapters",
    "data",
    "federated",
    "jobs",
    "layers",
    "linalg",
    "metrics",
    "recovery",
    "tasks",
    "training",
)

try:
    __version__ = version("eckart")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+source"

__all__ = [
    "InputError",
    "MethodInfo",
    "__version__",
    "adapt",
    "adapters",
    "compare",
    "data",
    "federate",
    "federated",
    "jobs",
    "layers",
    "linalg",
    "methods",
    "metrics",
    "recovery",
    "tasks",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"eckart.{name}")
    if name in _FACE:
        return getattr(importlib.import_module(_FACE[name]), name)
    raise AttributeError(f"module 'eckart' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


_peft_hook.install()
