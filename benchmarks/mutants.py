"""How many one-line changes of the source no test notices: a seeded sample of mutants for each room.

    python benchmarks/mutants.py [--rooms linalg,recovery,metrics,layers] [--sample 20] [--seed 0] [--file kernel.py]

A mutant changes one place: a comparison (> to ≥), an operator (+ to −, * to /), a constant, a sign, a transpose left
out, or a function such as sqrt or log. It is survived if the tests of its room pass. Each runs in a fork of one process
that has loaded torch, so that the source on disk never changes. Results: benchmarks/results/mutants.json; those of
another seed than the first are kept beside them as fresh places.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.machinery
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
RECOVERY = (
    "_alternation",
    "_biases",
    "_completed",
    "_fit",
    "_forms",
    "_ranked",
    "_ratings",
    "robust_altmin",
    "ranking",
)
DEFAULTS = "tests/recovery/test_defaults.py"
TESTS = {
    "linalg": ["tests/linalg"],
    "recovery": ["tests/recovery"],
    "metrics": ["tests/metrics"],
    "layers": ["tests/layers"],
}
NEAR = {  # test files that are enough for a source file, first those that are likely to notice
    "linalg": {
        "completion": [
            "tests/linalg/test_completion_maths.py",
            "tests/recovery/test_completion.py",
            "tests/recovery/test_ranking.py",
        ],
        "regression": ["tests/linalg/test_completion_maths.py", "tests/recovery/test_completion.py"],
        "subgradient": ["tests/recovery/test_subgm.py", "tests/linalg/test_descents.py"],
        "factored_descent": ["tests/linalg/test_descents.py", "tests/recovery/test_matrix_sensing_gd.py"],
        "operators": ["tests/recovery/test_operators.py"],
        "streaming": ["tests/linalg/test_streaming_maths.py", "tests/recovery/test_streaming.py"],
    },
    "recovery": {
        key: [DEFAULTS, "tests/recovery/test_completion.py", "tests/recovery/test_ranking.py"]
        for key in RECOVERY
    }
    | {"_base": ["tests/recovery/test_contract.py", DEFAULTS]}
    | {key: [DEFAULTS, "tests/recovery/test_streaming.py"] for key in ("_stream", "streaming", "_rows")}
    | {
        key: [DEFAULTS, "tests/recovery/test_table.py", "tests/recovery/test_subgm.py"]
        for key in ("subgm", "_measured", "_table")
    }
    | {
        "matrix_sensing_gd": [DEFAULTS, "tests/recovery/test_matrix_sensing_gd.py"],
        "hidden": [DEFAULTS, "tests/recovery/test_ranking.py"],
    },
}
METRICS = ["tests/metrics/test_matrix_nuclear_norm.py", "tests/metrics/test_spectral_metrics.py"]
METRICS += ["tests/metrics/test_geometry.py", "tests/metrics/test_hidden_states.py"]
NEAR["metrics"] = {path.stem: METRICS for path in (ROOT / "src" / "eckart" / "metrics").glob("*.py")} | {
    "accumulated": ["tests/metrics/test_accumulated.py"]
}
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
}
LIMIT_S, SLOWER = 60, 5
"""A mutant is noticed too if its tests take over a minute and five times as long as without it."""


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
    found = []
    for path in sorted((ROOT / "src" / "eckart" / room).glob("*.py")):
        if only in (None, path.name) and path.name not in ("__init__.py", "jobs.py", "_files.py", "_rows.py"):
            found += [(path, i) for i, _ in enumerate(mutations(ast.parse(path.read_text("utf-8"))))]
    return found


def source_of(path: Path, index: int) -> tuple[str, str]:
    """The source with one place changed, and a line that tells what."""
    tree = ast.parse(path.read_text("utf-8"))
    node, kind = list(mutations(tree))[index]
    new = mutated(node, kind)
    told = f"{path.relative_to(ROOT)}:{node.lineno} {kind}: {ast.unparse(node)}  ->  {ast.unparse(new)}"
    return ast.unparse(ast.fix_missing_locations(Replace(node, new).visit(tree))), told


def survives(room: str, path: Path, code: str, limit: float = math.inf) -> bool:
    """Whether the tests pass with this source in place of the module's own, within so many seconds."""
    near = NEAR.get(room, {}).get(path.stem, TESTS[room])
    tests = [t for t in near if (ROOT / t).exists()]
    child = os.fork()
    if child == 0:
        os.setsid()
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        loader = Changed(module, str(path))
        loader.code = code

        class Finder:
            def find_spec(self, name, *_):
                return importlib.util.spec_from_loader(name, loader) if name == module else None

        sys.meta_path.insert(0, Finder())
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
            status = 1
            with contextlib.suppress(BaseException):
                import pytest

                status = int(
                    pytest.main(["-x", "-q", "-p", "no:benchmark", "-p", "no:cacheprovider", *tests])
                )
        os._exit(status)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rooms", default=",".join(TESTS))
    parser.add_argument("--sample", type=int, default=20, help="mutants of each room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", help="of this source file alone")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "src"))
    import hypothesis  # noqa: F401
    import torch

    torch.set_num_threads(1)
    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    for room in arguments.rooms.split(","):
        every = sites(room, arguments.file)
        chosen = random.Random(arguments.seed).sample(every, min(arguments.sample, len(every)))
        alive = []
        limits = {}
        for path in sorted({path for path, _ in chosen}):
            began = time.monotonic()
            if not survives(room, path, path.read_text("utf-8")):
                raise SystemExit(f"the tests fail with {path} as it is: no mutant can tell")
            limits[path] = max(LIMIT_S, SLOWER * (time.monotonic() - began))
        for path, index in chosen:
            code, told = source_of(path, index)
            lives = survives(room, path, code, limits[path])
            print("SURVIVED" if lives else "killed  ", told, flush=True)
            alive += [told] * lives
        report = {
            "places": len(every),
            "sample": len(chosen),
            "killed": len(chosen) - len(alive),
            "survived": alive,
        }
        print(f"{room}: {report['killed']} of {len(chosen)} killed\n", flush=True)
        if arguments.file is None:
            before = kept.get(room, {})
            new = {"seed": arguments.seed, **report}
            if before.get("seed", arguments.seed) != arguments.seed:
                kept[room] = before | {"fresh": new}
            else:
                earlier = {name: before[name] for name in ("killed before", "fresh") if name in before}
                kept[room] = {"killed before": report["killed"], **earlier, **new}
            RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
