"""eckart: every way of using low-rank and structured weights, behind interfaces you already know.

Rooms are imported when they are first used, and PEFT and transformers learn our methods as soon as they and we are
imported.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from eckart import _hooks
from eckart.errors import InputError
from eckart.face import lazy

if TYPE_CHECKING:
    from eckart import (
        adapters,
        compression,
        data,
        federated,
        jobs,
        layers,
        linalg,
        metrics,
        optim,
        recovery,
        tasks,
        training,
    )
    from eckart.adapters import adapt
    from eckart.catalog import MethodInfo, methods
    from eckart.compression import compress
    from eckart.jobs.compare.comparison import compare
    from eckart.jobs.compare.compression import compare_compression
    from eckart.jobs.federate.federating import federate
    from eckart.layers import convert

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
    "compare_compression",
    "compress",
    "compression",
    "convert",
    "data",
    "federate",
    "federated",
    "jobs",
    "layers",
    "linalg",
    "methods",
    "metrics",
    "optim",
    "recovery",
    "tasks",
    "training",
]

if not TYPE_CHECKING:  # a checker reads the imports above, and knows that there is nothing else
    __getattr__, __dir__ = lazy(__name__)

_hooks.install()
