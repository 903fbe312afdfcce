"""pyproject.toml, the constraints, the workflow, the citation and the code agree."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = {extra: [Requirement(r) for r in rs] for extra, rs in PROJECT["optional-dependencies"].items()}
CORE = [Requirement(r) for r in PROJECT["dependencies"]]


REQUIREMENTS = [r for r in (*CORE, *(r for rs in EXTRAS.values() for r in rs)) if r.name != PROJECT["name"]]


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_known_good_set_meets_every_requirement(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pins("constraints.txt")[canonicalize_name(requirement.name)])


NOT_AT_THEIR_LOWEST = {"torch": "no older build without CUDA was at hand"}
APART = {"docs", "clients", "baselines", "demo-lm", "evaluate", "lm-eval"}
"""Extras that `all` leaves out: for developers, with other licences, compiled for minutes (llama-cpp-python), or of use
with a network above all (evaluate, lm-eval)."""
NOT_RUN = {r for extra in APART for r in EXTRAS[extra]}


@pytest.mark.parametrize("requirement", [r for r in REQUIREMENTS if r not in NOT_RUN], ids=str)
def test_the_lowest_set_is_at_the_lower_bounds(requirement: Requirement) -> None:
    """What `make lowest` installs is the least that pyproject.toml promises."""
    pinned = pins("constraints-lowest.txt")[canonicalize_name(requirement.name)]
    (lowest,) = (spec.version for spec in requirement.specifier if spec.operator == ">=")
    assert requirement.specifier.contains(pinned)
    if requirement.name not in NOT_AT_THEIR_LOWEST:
        assert Version(pinned).release[: len(Version(lowest).release)] == Version(lowest).release


def test_make_lowest_installs_all() -> None:
    line = re.search(r"^lowest_EXTRAS *:= (.+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert line and line[1].split(",") == ["all", "dev"]


def test_all_is_everything_that_a_user_may_need() -> None:
    (everything,) = EXTRAS["all"]
    assert everything.extras == EXTRAS.keys() - {"all", "dev"} - APART


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
            top = module.partition(".")[0]
            names = {canonicalize_name(name) for name in distributions.get(top, [top])}
            assert names & {canonicalize_name(r.name) for r in EXTRAS[extra]}, f"{path}: {module} in {extra}"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]


def test_the_workflow_runs_what_is_promised_with_the_least_rights() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    jobs = workflow["jobs"]
    assert workflow["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in jobs.values())
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"]) for step in steps if "uses" in step)
    assert {"run": ".ci/run"} in jobs["tests"]["steps"]
    promised = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)}
    assert set(jobs["tests"]["strategy"]["matrix"]["python"]) == promised
