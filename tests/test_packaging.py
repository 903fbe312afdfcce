"""pyproject.toml, constraints.txt and the code agree on what eckart depends on."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = {extra: [Requirement(r) for r in rs] for extra, rs in PROJECT["optional-dependencies"].items()}
CORE = [Requirement(r) for r in PROJECT["dependencies"]]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("requirement", [*CORE, *(r for rs in EXTRAS.values() for r in rs)], ids=str)
def test_the_known_good_set_meets_every_requirement(requirement: Requirement) -> None:
    if requirement.name != PROJECT["name"]:
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_all_is_everything_that_a_user_may_need() -> None:
    (everything,) = EXTRAS["all"]
    assert everything.extras == EXTRAS.keys() - {"all", "dev", "docs"}


def imports(path: Path) -> Iterator[str]:
    """The top-level packages that a file imports anywhere, by `import` or by `require`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "require":
            yield from (
                [node.args[0].value.partition(".")[0]] if isinstance(node.args[0], ast.Constant) else []
            )


def test_what_the_code_imports_is_declared() -> None:
    declared = {canonicalize_name(r.name) for rs in (CORE, *EXTRAS.values()) for r in rs}
    modules = {m for path in (ROOT / "src").rglob("*.py") for m in imports(path)}
    distributions = packages_distributions()
    missing = {
        module
        for module in modules - sys.stdlib_module_names - {"eckart"}
        if declared.isdisjoint(map(canonicalize_name, distributions.get(module, [module])))
    }
    assert missing == set()


def test_require_names_the_extra_that_brings_the_module() -> None:
    distributions = packages_distributions()
    for path in (ROOT / "src").rglob("*.py"):
        for module, extra in re.findall(
            r'require\(\s*"([\w.]+)",\s*(?:extra=)?"(\w+)"', path.read_text("utf-8")
        ):
            names = {canonicalize_name(name) for name in distributions[module.partition(".")[0]]}
            assert names & {canonicalize_name(r.name) for r in EXTRAS[extra]}, f"{path}: {module} in {extra}"
