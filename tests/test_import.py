"""`import eckart` is light, works with the core alone, and the rooms import downwards only."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "eckart"
MODULES = sorted(SOURCE.rglob("*.py"))
EXTRAS = (
    "optuna",
    "sqlalchemy",
    "psycopg",
    "altair",
    "vl_convert",
    "jinja2",
    "pandas",
    "pyarrow",
    "datasets",
    "PIL",
    "torchao",
    "sklearn",
    "scipy",
    "joblib",
    "torchmetrics",
)

# A room may import itself, the rooms named here, and the plain modules at the top of the package.
BELOW = {
    "linalg": set(),
    "optim": {"linalg"},
    "layers": {"linalg"},
    "metrics": {"linalg"},
    "recovery": {"linalg"},
    "adapters": {"linalg", "layers"},
    "compression": {"linalg", "layers"},
    "training": {"linalg", "adapters"},
    "federated": {"linalg", "adapters"},
}
ROOMS = set(BELOW)
BELOW["data"] = set()
BELOW["tasks"] = {"data", "catalog"} | ROOMS
BELOW["jobs"] = {"tasks"} | BELOW["tasks"]
GROUND = {
    "adapter_files",
    "arguments",
    "errors",
    "escapes",
    "extras",
    "face",
    "files",
    "hub",
    "processes",
    "quiet",
    "registry",
    "tensors",
}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_leaves_heavy_packages_alone() -> None:
    loaded = json.loads(python("import eckart, json, sys; print(json.dumps(list(sys.modules)))"))
    heavy = {"transformers", "peft", "accelerate", *EXTRAS}
    assert heavy.isdisjoint(name.partition(".")[0] for name in loaded)


def test_every_name_of_the_face_needs_only_the_core() -> None:
    """With each optional package hidden, everything in `eckart.__all__` and the registry can still be had."""
    python(
        f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS!r}))  # None: importing it raises ModuleNotFoundError
import eckart
for name in eckart.__all__:
    getattr(eckart, name)
assert eckart.methods() and eckart.adapters.ADAPTERS
"""
    )


def imported_rooms(path: Path) -> set[str]:
    """The parts of eckart that a file imports, at any depth of the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name.split(".")[1] for name in names if name.startswith("eckart.")}


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(SOURCE)) for path in MODULES])
def test_imports_go_down(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0]
    if room in GROUND or room in {f"{name}.py" for name in GROUND}:
        allowed = GROUND
    elif room in BELOW:
        allowed = BELOW[room] | GROUND | {room}
    else:  # the face and the command line see everything
        return
    assert imported_rooms(path) <= allowed


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(SOURCE)) for path in MODULES])
def test_nothing_is_unpickled(path: Path) -> None:
    text = path.read_text("utf-8")
    assert "torch.load(" not in text and "import pickle" not in text and "allow_pickle=True" not in text


def test_methods_are_registered_though_others_asked_for_peft_before() -> None:
    code = (
        "import importlib.util, eckart; importlib.util.find_spec('peft'); importlib.util.find_spec('peft'); "
        "from peft import PeftType; assert 'ECKART_LORA' in PeftType.__members__"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_jobs_do_not_import_in_circles() -> None:
    """Whatever the depth in a file: nothing that a job's module imports leads back to it."""
    known = {
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path
        for path in (SOURCE / "jobs").rglob("*.py")
    }
    graph = {
        name: {
            target
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module
            for target in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
            if target in known
        }
        for name, path in known.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError
