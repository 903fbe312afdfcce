"""The typed faces of the rooms in which every file is a method: ``__init__.pyi``, from their imports and decorators."""

from __future__ import annotations

import ast
from pathlib import Path

from _rows import ROOT

ROOMS = ("adapters", "training")


def stub(room: str) -> str:
    """What type checkers and editors read in the place of a room's ``__init__.py``."""
    folder = ROOT / "src" / "eckart" / room
    names: dict[str, str] = {}
    for node in ast.parse((folder / "__init__.py").read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"eckart.{room}."):
            names |= {alias.name: str(node.module) for alias in node.names}
    for file in sorted(folder.glob("[!_]*.py")):
        names |= dict.fromkeys(_registered(file), f"eckart.{room}.{file.stem}")
    lines = [
        f"from {module} import {name} as {name}"
        for name, module in sorted(names.items(), key=lambda n: n[::-1])
    ]
    listed = "".join(f'    "{name}",\n' for name in sorted(names))
    return "# Written by `make docs`.\n" + "\n".join(lines) + f"\n\n__all__ = [\n{listed}]\n"


def _registered(file: Path) -> list[str]:
    """The classes of a file that a decorator enters into the registry."""
    return [
        node.name
        for node in ast.parse(file.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "").startswith("register_")
    ]
