"""How many one-line changes of the source no test notices: a seeded sample of mutants for each room.

    python benchmarks/mutants.py [--rooms linalg,recovery] [--sample 14] [--seed 0] [--again] [--file kernel.py]

A mutant changes one place: a comparison (> to ≥), an operator (+ to −, * to /), a constant, a sign, a transpose left
out, a mean that becomes a sum, or a function such as sqrt or log that is left out. It is survived if the tests near its
file pass (`_near.py`). Each runs in a fork of one process that has loaded torch, so that the source on disk never
changes. Results: benchmarks/results/mutants.json, a run for each room and seed. With ``--again`` those that survived
this seed's run are run once more, to see which the tests written since notice; what survives because it changes nothing
is entered there under "equivalent" by hand, with its reason.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.machinery
import json
import os
import random
import re
import resource
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from _near import NEAR, ROOT, SKIPPED, near

RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
SWAPS: dict[type, type] = {
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
CALLS = {
    "sqrt": None,
    "log": None,
    "log2": "log",
    "square": None,
    "abs": None,
    "detach": None,
    "exp": None,
    "sign": None,
    "t": None,
    "mean": "sum",
}
"""Functions, and what each becomes: None leaves it out."""
LIMIT_S = 60
"""A mutant is noticed too if its tests take over a minute of a core; without it they take half of that at most."""
LOADED = ("pytest", "hypothesis", "scipy.sparse", "sklearn.base", "pandas", "peft", "transformers", "torch")
"""What the tests import besides, loaded once."""


def mutations(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Every place that can be changed, and what the change is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPS:
            yield node, "compare"
        elif isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
            yield node, "operator"
        elif isinstance(node, ast.BoolOp):
            yield node, "boolean"
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node, "constant"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
            yield node, "sign"
        elif isinstance(node, ast.Attribute) and node.attr in ("mT", "T"):
            yield node, "transpose"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
            yield node, "call"


def mutated(node: ast.AST, kind: str) -> ast.AST:
    """The node that stands in its place."""
    if kind == "compare":
        return ast.Compare(node.left, [SWAPS[type(node.ops[0])]()], node.comparators)
    if kind == "operator":
        return ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
    if kind == "boolean":
        return ast.BoolOp(SWAPS[type(node.op)](), node.values)
    if kind == "constant":
        return ast.Constant(
            node.value + 1 if isinstance(node.value, int) else node.value * 2 + (node.value == 0)
        )
    if kind == "sign":
        return node.operand
    if kind == "transpose":
        return node.value
    name = CALLS[node.func.attr]
    whole = node.args[0] if node.args else node.func.value
    return (
        whole
        if name is None
        else ast.Call(ast.Attribute(node.func.value, name, ast.Load()), node.args, node.keywords)
    )


class Replace(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return ast.copy_location(self.new, node) if node is self.old else self.generic_visit(node)


class Changed(importlib.machinery.SourceFileLoader):
    """Loads one module from other source."""

    code: str

    def get_code(self, fullname: str):
        return compile(self.code, self.path, "exec", dont_inherit=True)


def sites(room: str, only: str | None) -> list[tuple[Path, int]]:
    """Every place of a room, or of one file of it."""
    found = []
    for path in sorted((ROOT / "src" / "eckart" / room).glob("*.py")):
        if only in (None, path.name) and path.name not in SKIPPED:
            found += [(path, i) for i, _ in enumerate(mutations(ast.parse(path.read_text("utf-8"))))]
    return found


def told(path: Path, node: ast.AST, kind: str) -> str:
    """A line that tells what is changed."""
    new = ast.unparse(mutated(node, kind))
    return f"{path.relative_to(ROOT)}:{node.lineno} {kind}: {ast.unparse(node)}  ->  {new}"


def source_of(path: Path, index: int) -> tuple[str, str]:
    """The source with one place changed, and the line that tells what."""
    tree = ast.parse(path.read_text("utf-8"))
    node, kind = list(mutations(tree))[index]
    line = told(path, node, kind)
    new = Replace(node, mutated(node, kind)).visit(tree)
    return ast.unparse(ast.fix_missing_locations(new)), line


def site_of(line: str) -> tuple[Path, int]:
    """The place that a line tells of, though lines above it may have come or gone."""
    name, number, change = re.fullmatch(r"(.*?):(\d+) (.*)", line).groups()
    path = ROOT / name
    alike = [
        (abs(node.lineno - int(number)), index)
        for index, (node, kind) in enumerate(mutations(ast.parse(path.read_text("utf-8"))))
        if told(path, node, kind).partition(" ")[2] == change
    ]
    if not alike:
        raise SystemExit(f"the place is gone: {line}")
    return path, min(alike)[1]


class Noticing:
    """The first test that fails, or the file that does not load."""

    node = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.node = self.node or report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.node = self.node or report.nodeid


class Found(NamedTuple):
    """Whether the tests passed, and the first that did not."""

    passed: bool
    node: str


def tried(runs: list[list[str]], changed: tuple[Path, str] | None = None) -> Found:
    """Tests in a fork, with other source in place of one module's own."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
        if changed:
            put_in_place(*changed)
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        status, noticing = 1, Noticing()
        with contextlib.suppress(BaseException):
            import pytest

            for run in runs:
                options = ["-x", "-q", "-m", "not compiled", "-p", "no:benchmark", "-p", "no:cacheprovider"]
                status = int(pytest.main([*options, *run], [noticing]))
                if status:
                    break
        os.write(into, noticing.node.encode())
        os._exit(status)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        node = pipe.read().decode()
    return Found(os.waitpid(child, 0)[1] == 0, node)


def put_in_place(path: Path, code: str) -> None:
    """Make this the source of a module that is not loaded yet."""
    module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    loader = Changed(module, str(path))
    loader.code = code

    class Finder:
        def find_spec(self, name, *_):
            return importlib.util.spec_from_loader(name, loader) if name == module else None

    sys.meta_path.insert(0, Finder())


@cache
def passes(node: str) -> bool:
    """Whether a test passes with the source as it is."""
    return tried([[node] if "::" in node else [node, "--collect-only"]]).passed


def survivors(room: str, chosen: list[tuple[Path, int]]) -> list[str]:
    """Those of these mutants that no test notices. A test that notices one must pass without it."""
    alive: list[str] = []
    for path, index in chosen:
        code, line = source_of(path, index)
        began = time.monotonic()
        found = tried(near(room, path.stem), (path, code))
        if found.node and not passes(found.node):
            raise SystemExit(f"{found.node} fails with the source as it is: no mutant can tell")
        name = "SURVIVED" if found.passed else "killed  "
        print(name, f"{time.monotonic() - began:4.0f} s", line, f"  [{found.node}]", flush=True)
        alive += [line] * found.passed
    return alive


def run(room: str, seed: int, sample: int, file: str | None, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A seed's sample of a room."""
    every = sites(room, file)
    chosen = random.Random(seed).sample(every, min(sample, len(every)))
    alive = survivors(room, chosen)
    killed = len(chosen) - len(alive)
    earlier = next((r for r in runs if r["seed"] == seed), {})
    counts = {"seed": seed, "places": len(every), "sample": len(chosen)}
    kept = {"equivalent": earlier["equivalent"]} if "equivalent" in earlier else {}
    before = earlier.get("killed before", killed)
    return counts | {"killed before": before, "killed": killed, "survived": alive} | kept


def run_again(room: str, found: dict[str, Any]) -> dict[str, Any]:
    """A run with those that survived it tried once more."""
    known = found.get("equivalent", {})
    open_ = [line for line in found["survived"] if line not in known]
    alive = survivors(room, [site_of(line) for line in open_])
    return found | {
        "killed": found["killed"] + len(open_) - len(alive),
        "survived": [line for line in found["survived"] if line in known] + alive,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rooms", default=",".join(NEAR))
    parser.add_argument("--sample", type=int, default=14, help="mutants of each room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="those that survived this seed's run")
    parser.add_argument("--file", help="of this source file alone; nothing is written")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "src"))
    for name in LOADED:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    for room in arguments.rooms.split(","):
        runs: list[dict[str, Any]] = kept.setdefault(room, [])
        if arguments.again:
            report = run_again(room, next(r for r in runs if r["seed"] == arguments.seed))
        else:
            report = run(room, arguments.seed, arguments.sample, arguments.file, runs)
        print(f"{room}: {report['killed']} of {report['sample']} noticed\n", flush=True)
        if arguments.file is None:
            kept[room] = [r for r in runs if r["seed"] != arguments.seed] + [report]
            RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
