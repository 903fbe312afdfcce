"""What files say of the methods in them, read without running them: decorators, class variables, fields, docstrings.

A room tells of its methods in one of two ways, and both are literals:

- a class under a decorator ``@register_…("slug", title=…, paper=…, …)``, its ``knob`` there or a class variable, its
  options the fields of the dataclass, its summary the first line of the docstring;
- a tuple ``METHODS`` of dictionaries in the room's ``__init__.py``, with the fields of `MethodInfo`.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

FACTS = ("title", "paper", "arxiv", "trains", "saves")
OPTIONAL: tuple[tuple[str, Any], ...] = (("knob", "r"), ("aliases", ()))


class Unreadable(Exception):
    """A fact that only running the file could tell."""


@dataclass(frozen=True)
class MethodInfo:
    """One row of `eckart.methods()`.

    Attributes:
        slug: the method's name on the command line.
        name: its name as its authors write it, or that of its estimator, layer or function.
        family: the room it lives in, such as ``"adapters"``.
        paper: authors and year.
        arxiv: the arXiv id.
        knob: the option that sets its size.
        trains: what is trained or fitted.
        saves: what a checkpoint holds.
        summary: one line.
    """

    slug: str
    name: str
    family: str
    paper: str
    arxiv: str
    knob: str
    trains: str
    saves: str
    summary: str


@dataclass(frozen=True)
class Method:
    """A method as its file describes it.

    Attributes:
        info: its row of the table.
        aliases: other names by which it is known.
        options: its options, each with the source of its type, such as ``"int | None"``.
    """

    info: MethodInfo
    aliases: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)


class _Class(NamedTuple):
    """A class of a file, and what the file assigns to names, such as ``Variant = Literal["row", "bat"]``."""

    node: ast.ClassDef
    names: Mapping[str, ast.expr]


def read_methods(family: str, files: Iterable[Path], bases: Iterable[Path] = ()) -> list[Method]:
    """The methods that these files describe.

    Args:
        family: the room they belong to.
        files: those of the room, its ``__init__.py`` among them.
        bases: further files, in which classes of theirs have their bases.

    Raises:
        Unreadable: a fact that is no literal.
    """
    files = list(files)
    trees = {path: ast.parse(path.read_bytes()) for path in (*bases, *files)}
    classes = {
        node.name: _Class(node, _assigned(tree.body))
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    rows = [row for path in files for row in _listed(trees[path])]
    found = [Method(MethodInfo(**row)) for row in rows]
    for path in files:
        for node in trees[path].body:
            if isinstance(node, ast.ClassDef) and (call := _registration(node)) is not None:
                found.append(_registered(family, call, [*_lineage(node.name, classes)], path))
    return found


def _assigned(body: Sequence[ast.stmt]) -> dict[str, ast.expr]:
    """The names that a file or class assigns to, with or without a type."""
    found = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found[node.target.id] = node.value
        elif isinstance(node, ast.Assign):
            found.update({target.id: node.value for target in node.targets if isinstance(target, ast.Name)})
    return found


def _listed(tree: ast.Module) -> list[dict[str, str]]:
    """``METHODS`` of an ``__init__.py``; nothing where it is made of the registered classes."""
    value = _assigned(tree.body).get("METHODS")
    return list(ast.literal_eval(value)) if isinstance(value, ast.Tuple) else []


def _registration(node: ast.ClassDef) -> ast.Call | None:
    """The decorator that registers a class and tells of it."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call):
            name = decorator.func.attr if isinstance(decorator.func, ast.Attribute) else None
            name = decorator.func.id if isinstance(decorator.func, ast.Name) else name
            told = any(keyword.arg == "title" for keyword in decorator.keywords)
            if (name or "").startswith("register_") and decorator.args and told:
                return decorator
    return None


def _lineage(name: str, classes: Mapping[str, _Class]) -> Iterator[_Class]:
    """A class and those it derives from, as far as the files tell."""
    if name in classes:
        yield classes[name]
        for base in classes[name].node.bases:
            yield from _lineage(ast.unparse(base).rpartition(".")[2], classes)


def _registered(family: str, call: ast.Call, lineage: list[_Class], path: Path) -> Method:
    given: dict[str, ast.expr] = {"slug": call.args[0]}
    for parent in reversed(lineage):
        given |= {name: value for name, value in _assigned(parent.node.body).items() if name == "knob"}
    given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
    node = lineage[0].node
    try:
        facts = {name: ast.literal_eval(given[name]) for name in ("slug", *FACTS)}
        knob, aliases = (
            ast.literal_eval(given[name]) if name in given else other for name, other in OPTIONAL
        )
    except (KeyError, ValueError) as error:
        raise Unreadable(f"{path}: what {node.name} is registered with is no literal: {error}") from None
    summary = (ast.get_docstring(node) or "").strip().partition("\n")[0]
    info = MethodInfo(name=facts.pop("title"), family=family, knob=knob, summary=summary, **facts)
    return Method(info, tuple(aliases), _options(lineage))


def _options(lineage: list[_Class]) -> dict[str, str]:
    """The fields of a dataclass, those of its bases first, with the sources of their types."""
    found: dict[str, str] = {}
    for parent in reversed(lineage):
        for node in parent.node.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                kind = ast.unparse(parent.names.get(ast.unparse(node.annotation), node.annotation))
                if not kind.startswith("ClassVar"):
                    found[node.target.id] = kind
    return found


def module_file(module: str) -> Path | None:
    """The file of an installed module, found without importing it or its packages; None if it is not there."""
    name, *rest = module.split(".")
    spec = importlib.util.find_spec(name)
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def package_files(package: Path) -> list[Path]:
    """The files of a package that may hold methods: ``__init__.py`` and its public modules."""
    modules = sorted(path for path in package.glob("*.py") if not path.name.startswith("_"))
    return [package / "__init__.py", *modules]
