"""Registers our methods in PEFT whenever both packages are imported, in either order, without importing PEFT."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _AfterPeft(MetaPathFinder, Loader):
    """Finds ``peft`` as the other finders do, and registers our methods once it has been executed."""

    _spec: ModuleSpec
    _loader: Loader

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "peft":
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)  # to find is not to import: others only ask whether PEFT exists
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
        importlib.import_module("eckart.adapters")


def install() -> None:
    """Register now if PEFT is there already, otherwise when it is imported."""
    if "peft" in sys.modules:
        importlib.import_module("eckart.adapters")
    else:
        sys.meta_path.insert(0, _AfterPeft())
