"""A text classification set that every machine has: the docstrings of Python's own standard library.

Task: given a docstring, name the package it was written for. The sources are parsed, never imported. What is
taken: the twelve packages with the most docstrings (a package counts only with three modules or more, since each
split needs one); test suites and vendored code are left out. Docstrings that agree up to case and white space are
kept once, and dropped altogether where two packages share them. Modules, not docstrings, are dealt to the splits,
so no split has seen the file of another.

The set depends on the Python version alone (3.12 lost `distutils`, 3.13 lost `lib2to3`), so scores are comparable
within one version. A docstring may name its own package ("a tkinter widget"), which is left as it is: it is part of
the text that a reader would have.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from eckart.errors import InputError

PACKAGES = 12
HELD_OUT = {"test": 0.2, "validation": 0.15}
NOT_SOURCE = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "_vendor",
    "_bundled",
    "__pycache__",
}


class Docstring(NamedTuple):
    """One docstring, the package it belongs to and the module (a path inside the library) it stands in."""

    text: str
    package: str
    module: str


@cache
def stdlib_docstrings(library: Path | None = None, packages: int = PACKAGES) -> Mapping[str, list[Docstring]]:
    """The docstrings of the largest packages as ``{"train": […], "validation": […], "test": […]}``.

    Args:
        library: directory of the library; the running interpreter's own by default.
        packages: how many packages, the largest first.

    Raises:
        InputError: the interpreter carries no library sources (a zipped or stripped installation).
    """
    library = library or Path(sysconfig.get_paths()["stdlib"])
    unique = _without_duplicates(
        docstring for source in _sources(library) for docstring in _read(source, library)
    )
    by_package: dict[str, list[Docstring]] = defaultdict(list)
    for docstring in unique:
        by_package[docstring.package].append(docstring)
    eligible = [p for p, found in by_package.items() if len({d.module for d in found}) >= 1 + len(HELD_OUT)]
    chosen = sorted(eligible, key=lambda p: (-len(by_package[p]), p))[:packages]
    if len(chosen) < 2:
        raise InputError(
            f"--data: no sources of the standard library in {library} to read docstrings from; give a data set"
        )
    splits: dict[str, list[Docstring]] = {"train": [], "validation": [], "test": []}
    for package in sorted(chosen):
        home = deal_modules(Counter(d.module for d in by_package[package]))
        for docstring in by_package[package]:
            splits[home[docstring.module]].append(docstring)
    return splits


def deal_modules(sizes: Mapping[str, int]) -> dict[str, str]:
    """Deal the modules of one package to the splits: test and validation take, in the order of the hash of the
    name, what still fits in their share (or else the smallest module left); train has the rest."""
    order = sorted(sizes, key=lambda module: hashlib.sha256(module.encode()).digest())
    home: dict[str, str] = {}
    for split, share in HELD_OUT.items():
        room = share * sum(sizes.values())
        free = [module for module in order if module not in home]
        for module in free:
            if sizes[module] <= room:
                home[module] = split
                room -= sizes[module]
        if split not in home.values():
            home[min(free, key=lambda module: sizes[module])] = split
    return {module: home.get(module, "train") for module in order}


def _sources(library: Path) -> Iterator[Path]:
    for package in sorted(library.iterdir()):
        if (package / "__init__.py").is_file() and package.name not in NOT_SOURCE:
            for source in sorted(package.rglob("*.py")):
                if NOT_SOURCE.isdisjoint(source.relative_to(library).parts):
                    yield source


def _read(source: Path, library: Path) -> Iterator[Docstring]:
    module = source.relative_to(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old sources are not our user's business
        try:
            tree = ast.parse(source.read_bytes())
        except (SyntaxError, ValueError):
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and text.strip():
                yield Docstring(text, module.parts[0], module.as_posix())


def _without_duplicates(docstrings: Iterator[Docstring]) -> list[Docstring]:
    first: dict[str, Docstring] = {}
    owners: dict[str, set[str]] = defaultdict(set)
    for docstring in docstrings:
        key = " ".join(docstring.text.casefold().split())
        first.setdefault(key, docstring)
        owners[key].add(docstring.package)
    return [docstring for key, docstring in first.items() if len(owners[key]) == 1]
