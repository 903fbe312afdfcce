"""Optional dependencies, imported when the job that needs them starts."""

from __future__ import annotations

import importlib
from types import ModuleType

from eckart.errors import InputError


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module or say in one line what to install.

    Args:
        module: dotted module name, such as ``"optuna"``.
        extra: the extra of this package that brings it, such as ``"compare"``.

    Raises:
        InputError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise InputError(
            f"{module} is not installed: this needs the extra '{extra}', install it with: pip install 'eckart[{extra}]'"
        ) from None
