"""A text classification set that every machine has: the docstrings of functions in Python's own standard library.

Task: given its docstring, does a function *return* a value, or does it only *act*? The label is read from the syntax
tree: a function returns where its own body (not that of a function inside) has a ``return`` with a value other than
None, or a ``yield``. A body that only passes or raises tells neither and is left out, and so are test suites and
vendored code. The sources are parsed, never imported. Docstrings that agree up to case and white space are kept once,
and dropped altogether where their labels differ. Files, not docstrings, are dealt to the splits, so no split has seen
the file of another, and each example knows its file. Two functions of three return; of these as many are kept in each
split as there are that only act, those with the smallest hashes of their texts, so that neither label is right by
itself.

The set depends on the Python version alone (3.12 lost `distutils`, 3.13 lost `lib2to3`), so scores are comparable
within one version.
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

RETURNS, ACTS = "returns", "acts"
HELD_OUT = {"test": 0.33, "validation": 0.1}
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
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Docstring(NamedTuple):
    """One docstring, what its function does, and the module (a path inside the library) it stands in."""

    text: str
    label: str
    module: str


@cache
def stdlib_docstrings(library: Path | None = None) -> Mapping[str, list[Docstring]]:
    """The docstrings of functions as ``{"train": […], "validation": […], "test": […]}``.

    Args:
        library: directory of the library; the running interpreter's own by default.

    Raises:
        InputError: the interpreter carries no library sources (a zipped or stripped installation).
    """
    library = library or Path(sysconfig.get_paths()["stdlib"])
    found = _without_duplicates(
        docstring for source in _sources(library) for docstring in _read(source, library)
    )
    home = deal_modules(Counter(docstring.module for docstring in found))
    dealt: dict[str, list[Docstring]] = {"train": [], "validation": [], "test": []}
    for docstring in found:
        dealt[home[docstring.module]].append(docstring)
    splits = {part: _even(docstrings) for part, docstrings in dealt.items()}
    if any({d.label for d in part} != {RETURNS, ACTS} for part in splits.values()):
        raise InputError(
            f"--data: no sources of the standard library in {library} to read docstrings from; give a data set"
        )
    return splits


def _even(docstrings: list[Docstring]) -> list[Docstring]:
    """As many of each label, in their order."""
    number = min(Counter({RETURNS: 0, ACTS: 0} | Counter(d.label for d in docstrings)).values())
    kept: set[str] = set()
    for label in (RETURNS, ACTS):
        texts = (d.text for d in docstrings if d.label == label)
        kept |= set(sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())[:number])
    return [docstring for docstring in docstrings if docstring.text in kept]


def deal_modules(sizes: Mapping[str, int]) -> dict[str, str]:
    """Deal modules to the splits: test and validation take, in the order of the hash of the name, what still fits in
    their share (or else the smallest module left); train has the rest."""
    order = sorted(sizes, key=lambda module: hashlib.sha256(module.encode()).digest())
    home: dict[str, str] = {}
    for split, share in HELD_OUT.items():
        room = share * sum(sizes.values())
        free = [module for module in order if module not in home]
        for module in free:
            if sizes[module] <= room:
                home[module] = split
                room -= sizes[module]
        if free and split not in home.values():
            home[min(free, key=lambda module: sizes[module])] = split
    return {module: home.get(module, "train") for module in order}


def what_it_does(function: Function) -> str | None:
    """`RETURNS` or `ACTS`; None where the body only passes or raises."""
    body = [node for node in function.body if not _is_text(node)]
    if all(isinstance(node, ast.Pass | ast.Raise) for node in body):
        return None
    return RETURNS if any(map(_gives, _own_nodes(body))) else ACTS


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _own_nodes(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """What stands in a body, without what stands in the functions and classes inside it."""
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, Function | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)


def _gives(node: ast.AST) -> bool:
    if isinstance(node, ast.Return):
        return node.value is not None and not (
            isinstance(node.value, ast.Constant) and node.value.value is None
        )
    return isinstance(node, ast.Yield | ast.YieldFrom)


def _sources(library: Path) -> Iterator[Path]:
    for source in sorted(library.rglob("*.py")):
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
        if isinstance(node, Function):
            text, label = ast.get_docstring(node), what_it_does(node)
            if text and text.strip() and label:
                yield Docstring(text, label, module.as_posix())


def _without_duplicates(docstrings: Iterator[Docstring]) -> list[Docstring]:
    first: dict[str, Docstring] = {}
    labels: dict[str, set[str]] = defaultdict(set)
    for docstring in docstrings:
        key = " ".join(docstring.text.casefold().split())
        first.setdefault(key, docstring)
        labels[key].add(docstring.label)
    return [docstring for key, docstring in first.items() if len(labels[key]) == 1]
