"""Imported by Python when it starts below `eckart run`: eckart's methods, then the sitecustomize that was hidden."""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

_here = str(Path(__file__).parent)
try:
    import eckart  # noqa: F401 - PEFT learns our methods as soon as it is imported too
except ImportError as error:
    print(f"eckart run: {sys.executable} does not have eckart ({error})", file=sys.stderr)
_spec = PathFinder.find_spec("sitecustomize", [place for place in sys.path if place != _here])
if _spec is not None and _spec.loader is not None:
    _spec.loader.exec_module(module_from_spec(_spec))
