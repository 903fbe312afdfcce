"""The table of all methods, read from the files of the rooms: no method is imported, and neither are torch and PEFT."""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, cast

from eckart._facts import Method, MethodInfo, Unreadable, module_file, package_files, read_methods
from eckart.arguments import check_number, check_pattern, hint, method_hint
from eckart.errors import InputError

__all__ = [
    "ROOMS",
    "Method",
    "MethodInfo",
    "check_options",
    "find_adapter",
    "find_rule",
    "methods",
    "read_room",
]

ROOMS = ("adapters", "compression", "federated", "layers", "metrics", "optim", "recovery", "training")
"""The rooms that hold methods: a new one is entered here."""
PLUGINS = "eckart.adapters"
"""Entry points of this group name modules of other packages that register adapters."""


def methods(family: str | None = None) -> list[MethodInfo]:
    """Every method, by family and slug.

    Args:
        family: keep only this family, such as ``"adapters"``.

    Raises:
        InputError: no method is of that family.
    """
    if family is not None and family not in ROOMS:
        raise InputError(f"unknown family {family!r}: known are {', '.join(ROOMS)}")
    found = [method.info for room in ROOMS if family in (None, room) for method in _methods_of(room)]
    return sorted(found, key=lambda info: (info.family, info.slug))


def find_adapter(method: str) -> Method:
    """An adapter method, by slug or alias.

    Raises:
        InputError: no such method; names the nearest.
    """
    slug = method.strip().lower().replace("_", "-")
    known: dict[str, Method] = {}
    for found in _methods_of("adapters"):
        known |= dict.fromkeys((found.info.slug, *found.aliases), found)
    if slug in known:
        return known[slug]
    slugs = sorted({found.info.slug for found in known.values()})
    near = method_hint(slug, known)
    raise InputError(f"unknown method {method!r}: {near} Known: {', '.join(slugs)}")


def find_rule(rule: str) -> Method:
    """A training rule, by slug.

    Raises:
        InputError: no such rule; names the nearest.
    """
    slug = rule.strip().lower().replace("_", "-")
    known = {found.info.slug: found for found in _methods_of("training")}
    if slug not in known:
        near = hint(slug, known, "see `eckart methods --family training`.", cutoff=0.4)
        raise InputError(f"unknown rule {rule!r}: {near} Known: {', '.join(sorted(known))}")
    return known[slug]


def check_options(method: Method, options: Mapping[str, Any]) -> None:
    """Refuse options that a method lacks, and values of another type than theirs.

    Raises:
        InputError: naming the option, the value and the remedy.
    """
    for name, value in options.items():
        if name not in method.options:
            near = hint(name, method.options, f"it has {', '.join(sorted(method.options))}")
            raise InputError(f"{method.info.slug} has no option {name!r}: {near}")
        _check_value(name, value, method.options[name])
    for name in ("exclude_modules", "layers_pattern"):
        check_pattern(name, options.get(name))


def _check_value(name: str, value: Any, source: str) -> None:
    """Hold a value to its type, where that is one number, a boolean or words to choose from, or None."""
    try:
        kind = ast.parse(source, mode="eval").body
    except SyntaxError:
        return
    if isinstance(kind, ast.BinOp) and ast.unparse(kind.right) == "None":
        kind = kind.left
        if value is None:
            return
    if (plain := ast.unparse(kind)) in ("bool", "int", "float"):
        check_number(name, value, cast('Literal["bool", "int", "float"]', plain))
    elif isinstance(kind, ast.Subscript) and ast.unparse(kind.value).endswith("Literal"):
        try:
            choices = ast.literal_eval(kind.slice)
        except ValueError:
            return
        choices = choices if isinstance(choices, tuple) else (choices,)
        if value not in choices:
            raise InputError(f"{name} is {value!r}: give one of {', '.join(map(str, choices))}")


def read_room(room: str) -> list[Method]:
    """The methods that the files of a room describe.

    Raises:
        Unreadable: a fact that is no literal.
    """
    files = package_files(Path(__file__).parent / room)
    return read_methods(room, files, _bases() if room == "adapters" else ())


def _bases() -> list[Path]:
    """Where the configs of adapters have their bases: PEFT's and our own."""
    ours = [Path(__file__).parent / "adapters" / f"{name}.py" for name in ("_method", "_prompts", "_config")]
    theirs = module_file("peft.config")
    return ours if theirs is None else [theirs, *ours]


@cache
def _read(room: str) -> tuple[Method, ...]:
    return tuple(read_room(room))


def _methods_of(room: str) -> list[Method]:
    """The methods of a room: those of its files and, for adapters, of plug-ins and of this process."""
    found = list(_read(room))
    if room == "adapters":
        known = {method.info.slug for method in found}
        for method in (*_plugins(), *_registered()):
            if method.info.slug not in known:
                found.append(method)
                known.add(method.info.slug)
    return found


def _plugins() -> Iterator[Method]:
    """The adapters of other packages; where their files do not tell, all that are registered are imported."""
    for point in entry_points(group=PLUGINS):
        file = module_file(point.module)
        if file is None:
            continue  # loading it is what says why
        files = package_files(file.parent) if file.name == "__init__.py" else [file]
        try:
            described = read_methods("adapters", files, [*_bases(), *package_files(_bases()[-1].parent)])
        except (Unreadable, SyntaxError):
            described = []
        if not described:
            import eckart.adapters  # noqa: F401  # its registry is read next
        yield from described


def _registered() -> Iterator[Method]:
    """The adapters in the registry of this process, if it has been made: those that a script registers are there."""
    room = sys.modules.get("eckart.adapters")
    for slug, config in {**getattr(room, "ADAPTERS", {}), **getattr(room, "PROMPTS", {})}.items():
        summary = (config.__doc__ or "").strip().partition("\n")[0]
        info = MethodInfo(
            slug,
            config.title,
            config.family,
            config.paper,
            config.arxiv,
            config.knob,
            config.trains,
            config.saves,
            summary,
        )
        options = {field.name: str(field.type) for field in dataclasses.fields(config) if field.init}
        yield Method(info, config.aliases, options)
