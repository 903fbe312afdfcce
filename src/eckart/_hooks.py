"""Registers our parts in PEFT and transformers when they and we are imported, in either order, importing neither."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

AFTER = {
    "peft": ("eckart.adapters",),
    "transformers.models.auto.configuration_auto": ("eckart.compression._sliced_config",),
    "transformers.quantizers.auto": ("eckart.compression._quantizer", "eckart.layers._quantizer"),
}
"""Their module → ours, whose import registers something there."""


class _After(MetaPathFinder, Loader):
    """Finds one module as the other finders do, and imports one of ours once it has been executed."""

    _spec: ModuleSpec
    _loader: Loader

    def __init__(self, theirs: str, ours: Sequence[str]) -> None:
        self._theirs, self._ours = theirs, ours

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._theirs:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(
                0, self
            )  # to find is not to import: others only ask whether the package exists
        if spec is None or spec.loader is None:
            return spec
        self._spec, self._loader, spec.loader = spec, spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        sys.meta_path.remove(self)
        self._spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        for module_of_ours in self._ours:
            importlib.import_module(module_of_ours)


def install() -> None:
    """Register now with what is there already, with the rest when it is imported."""
    for theirs, ours in AFTER.items():
        if theirs in sys.modules:
            for module in ours:
                importlib.import_module(module)
        else:
            sys.meta_path.insert(0, _After(theirs, ours))
